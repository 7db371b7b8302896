"""What a caller asks of topk_affinity: how many neighbours, from where, and how they are weighed."""

import functools
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from timecycle.errors import InputError


@dataclass(frozen=True)
class Select:
    """Which keys are kept for a query and what they weigh. Raises InputError for values that mean nothing."""

    k: int
    """Neighbours kept, in each slot (scope "frame") or over all slots (scope "joint")."""
    temperature: float
    """The logit is the dot product divided by it."""
    scope: Literal["frame", "joint"] = "joint"
    normalise: Literal["all", "kept"] = "kept"
    ties: Literal["exact", "all"] = "exact"
    """"exact": k neighbours, ties to the lower index. "all": also everything that equals the k-th value."""

    def __post_init__(self) -> None:
        if self.k < 1:
            raise InputError(f"Select.k is {self.k}; expected at least one neighbour")
        if not self.temperature > 0:
            raise InputError(f"Select.temperature is {self.temperature}; expected a positive number")
        for name, choices in (
            ("scope", ("frame", "joint")),
            ("normalise", ("all", "kept")),
            ("ties", ("exact", "all")),
        ):
            value = getattr(self, name)
            if value not in choices:
                raise InputError(f"Select.{name} is {value!r}; expected {choices[0]!r} or {choices[1]!r}")


@dataclass(frozen=True)
class Region:
    """Which keys of a frame a query may see: those near its own place on the grid. Raises InputError likewise.

    With dy, dx the distance of rows and columns, a key is inside the region if, by shape,
    "circle<": dy^2 + dx^2 < radius^2 (CRW, VFS); "circle<=": dy^2 + dx^2 <= radius^2 (DINOv3);
    "square<=": max(|dy|, |dx|) <= radius (DINO).
    """

    height: int
    width: int
    radius: float
    shape: Literal["circle<", "circle<=", "square<="] = "circle<"

    def __post_init__(self) -> None:
        if self.height < 1 or self.width < 1:
            raise InputError(f"Region is {self.height} x {self.width}; expected at least 1 x 1 positions")
        if not self.radius >= 0:
            raise InputError(f"Region.radius is {self.radius}; expected zero or more positions")
        if self.shape not in ("circle<", "circle<=", "square<="):
            raise InputError(f"Region.shape is {self.shape!r}; expected 'circle<', 'circle<=' or 'square<='")

    def reach(self) -> list[int]:
        """How far the region reaches: entry d is the largest |dx| allowed in a row d away; rows beyond have no entry.

        This one list is what every backend works from, so that they cannot disagree on a rim.
        """
        return list(_reach(self))

    def _inside(self, dy: int, dx: int) -> bool:
        if self.shape == "square<=":
            return max(dy, dx) <= self.radius
        squared = dy * dy + dx * dx
        return squared < self.radius**2 if self.shape == "circle<" else squared <= self.radius**2


@functools.lru_cache(maxsize=64)  # a stream asks for every frame
def _reach(region: Region) -> tuple[int, ...]:
    reach = []
    for dy in range(region.height):
        allowed = [dx for dx in range(region.width) if region._inside(dy, dx)]
        if not allowed:
            break
        reach.append(allowed[-1])
    return tuple(reach)


def inside(width: int, reach: list[int], queries: int, device: torch.device) -> Tensor:
    """The region as a mask, bool [M queries, M keys], M = queries positions in rows of `width`."""
    place = torch.arange(queries, device=device)
    dy = (place[:, None] // width - place // width).abs()
    dx = (place[:, None] % width - place % width).abs()
    # Rows out of reach allow nothing: every |dx| exceeds -1.
    allowed = torch.full((queries // width,), -1, dtype=torch.int64, device=device)
    allowed[: len(reach)] = torch.tensor(reach, device=device)
    return dx <= allowed[dy]
