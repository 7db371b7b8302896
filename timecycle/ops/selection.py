"""Options of topk_affinity: how many neighbors are kept, of which keys, and how they are weighted."""

import functools
from dataclasses import dataclass
from numbers import Integral
from typing import Literal

import torch
from torch import Tensor

from timecycle import deprecated
from timecycle.errors import InputError

MOST_KEPT = 2**31 - 1
"""The largest k: lists and their indices are counted in 32 bits."""
LEAST_TEMPERATURE, LARGEST_TEMPERATURE = 2.0**-126, 2.0**126
"""Between them a temperature and its reciprocal are normal numbers in float32, which kernels multiply by."""


def check_temperature(name: str, temperature: float) -> None:
    """Refuse what logits cannot be divided by in float32, as the argument of that name: InputError."""
    if not LEAST_TEMPERATURE <= temperature <= LARGEST_TEMPERATURE:
        raise InputError(
            f"{name} is {temperature}; expected a positive number, {LEAST_TEMPERATURE:.2g} to "
            f"{LARGEST_TEMPERATURE:.2g}, whose reciprocal float32 holds"
        )


@deprecated.fields(normalise="softmax_over")
@dataclass(frozen=True)
class Select:
    """Which keys are kept for a query, and their weights. Raises InputError if a value is out of range."""

    k: int
    """Neighbors kept, in each slot (scope "frame") or over all slots (scope "joint"): 1 to 2^31 - 1."""
    temperature: float
    """The logit is the dot product divided by it: 2^-126 to 2^126."""
    scope: Literal["frame", "joint"] = "joint"
    """"frame": k keys of every context frame are kept. "joint": k keys of all context frames together."""
    softmax_over: Literal["all", "topk"] = "topk"
    """Whether the softmax is over all keys a query may see, or over the kept ones only."""
    ties: Literal["exact", "all"] = "exact"
    """"exact": k neighbors, ties to the lower index. "all": also everything that equals the k-th value."""

    def __post_init__(self) -> None:
        if not isinstance(self.k, Integral) or self.k < 1:
            raise InputError(f"Select.k is {self.k}; expected at least one neighbor")
        if self.k > MOST_KEPT:
            raise InputError(f"Select.k is {self.k}; expected at most {MOST_KEPT} neighbors")
        check_temperature("Select.temperature", self.temperature)
        for name, choices in (
            ("scope", ("frame", "joint")),
            ("softmax_over", ("all", "topk")),
            ("ties", ("exact", "all")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"Select.{name} is {value!r}; expected {choices[0]!r} or {choices[1]!r}")


@deprecated.fields(reach="half_widths")
@dataclass(frozen=True)
class Neighborhood:
    """Which keys of a frame a query may see: those near its own position on the grid.

    With dy, dx the distance of rows and columns, a key is inside the neighborhood if, by shape,

        circle<     dy^2 + dx^2 < radius^2 (CRW, VFS)
        circle<=    dy^2 + dx^2 <= radius^2 (DINOv3)
        square<=    max(|dy|, |dx|) <= radius (DINO)

    Raises InputError if a value is out of range.
    """

    height: int
    """Rows of the grid."""
    width: int
    """Columns of the grid."""
    radius: float
    """In positions, 0 or more."""
    shape: Literal["circle<", "circle<=", "square<="] = "circle<"
    """One of the three above."""

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InputError(f"Neighborhood is {self.height} x {self.width}; expected at least 1 x 1 positions")
        if not self.radius >= 0:
            raise InputError(f"Neighborhood.radius is {self.radius}; expected zero or more positions")
        if self.shape not in ("circle<", "circle<=", "square<="):
            raise InputError(f"Neighborhood.shape is {self.shape!r}; expected 'circle<', 'circle<=' or 'square<='")

    def half_widths(self) -> list[int]:
        """Entry d is the largest |dx| inside the neighborhood d rows away; rows beyond have no entry.

        Every backend works from this list, so that they cannot disagree at the border.
        """
        return list(_half_widths(self))

    def _inside(self, dy: int, dx: int) -> bool:
        if self.shape == "square<=":
            return max(dy, dx) <= self.radius
        squared, limit = dy * dy + dx * dx, self.radius * self.radius
        return squared < limit if self.shape == "circle<" else squared <= limit


@functools.lru_cache(maxsize=64)  # a stream needs it for every frame
def _half_widths(neighborhood: Neighborhood) -> tuple[int, ...]:
    half_widths = []
    for dy in range(neighborhood.height):
        allowed = [dx for dx in range(neighborhood.width) if neighborhood._inside(dy, dx)]
        if not allowed:
            break
        half_widths.append(allowed[-1])
    return tuple(half_widths)


def inside(width: int, half_widths: list[int], queries: int, device: torch.device) -> Tensor:
    """The neighborhood as a mask, bool [M queries, M keys], M = queries positions in rows of `width`."""
    position = torch.arange(queries, device=device)
    dy = (position[:, None] // width - position // width).abs()
    dx = (position[:, None] % width - position % width).abs()
    # Rows outside allow nothing: every |dx| exceeds -1.
    allowed = torch.full((queries // width,), -1, dtype=torch.int64, device=device)
    allowed[: len(half_widths)] = torch.tensor(half_widths, device=device)
    return dx <= allowed[dy]


def exact_topk(values: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """`torch.topk` of the rows of values [N, P] with a fixed order: larger value first, then lower index.

    torch.topk leaves open which of several equal values it returns. Rows where that matters, because the k-th and the
    next value are equal, are few; only they are sorted in full.
    """
    more = min(k + 1, values.shape[1])
    top, indices = values.topk(more, dim=1)
    if more > k:
        tied = (top[:, k - 1] == top[:, k]).nonzero().squeeze(1)
        top, indices = top[:, :k].contiguous(), indices[:, :k].contiguous()
        if len(tied):
            order = values[tied].sort(dim=1, descending=True, stable=True)
            top = top.index_copy(0, tied, order.values[:, :k])
            indices[tied] = order.indices[:, :k]
    by_index = indices.sort(dim=1)
    by_value = top.gather(1, by_index.indices).sort(dim=1, descending=True, stable=True)
    return by_value.values, by_index.values.gather(1, by_value.indices)
