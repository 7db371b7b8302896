"""One call of topk_affinity as its kernels see it: the inputs, and the numbers that several of them take."""

import math
from dataclasses import dataclass, replace
from typing import NamedTuple

from torch import Tensor

from . import limits, tiles
from .limits import cdiv


class Reach(NamedTuple):
    """A neighborhood as three whole numbers, so that kernels need no table.

    Inside is: dy < rows, dx <= columns, dy^2 + dx^2 <= limit.
    """

    rows: int
    columns: int
    limit: int

    @staticmethod
    def of(reach: list[int]) -> "Reach":
        """From the largest |dx| allowed d rows away, for each d. Raises ValueError if no three numbers say the same.

        They do for every disc and square, also where the grid cuts it: a row's own bound is met by its widest entry or
        by `limit`, and `limit` is no larger than the disc's own.
        """
        if not reach:
            return Reach(0, -1, -1)
        numbers = Reach(len(reach), reach[0], max(d * d + dx * dx for d, dx in enumerate(reach)))
        for d, dx in enumerate(reach):
            if dx != min(numbers.columns, math.isqrt(numbers.limit - d * d)):
                raise ValueError(f"reach is {reach}; expected that of a disc or a square")
        return numbers


@dataclass(frozen=True)
class Call:
    """The inputs of `topk_affinity`, made fit: channels side by side, the neighborhood as numbers."""

    query: Tensor  # [B, N, D]
    bank: Tensor  # [F, M, D]
    frames: Tensor  # [B, T] int64
    multiplicity: Tensor  # [B, T, 2] int64
    reach: Reach
    temperature: float
    joint: bool
    width: int  # of the neighborhood's grid, 0 without one
    precision: str  # of the products, in Triton's words
    together: int  # targets of the whole call, of which this may be a part: slots are grouped as they are for all

    @staticmethod
    def of(
        query: Tensor,
        bank: Tensor,
        frames: Tensor,
        multiplicity: Tensor,
        temperature: float,
        joint: bool,
        width: int,
        reach: list[int],
    ) -> "Call":
        """Shapes and dtypes as `topk_affinity` documents them."""
        query, bank = (x if x.stride(-1) == 1 else x.contiguous() for x in (query, bank))
        return Call(
            query,
            bank,
            frames.contiguous(),
            multiplicity.contiguous(),
            Reach.of(reach),
            temperature,
            joint,
            width,
            tiles.precision(query.dtype),
            query.shape[0],
        )

    def parts(self, lists: int, k: int, softmax_over_all: bool) -> list[slice]:
        """Targets to work on at a time, so that candidates of so many lists of k a query take little memory.

        A candidate is 8 bytes; with `softmax_over_all` a list has 8 more, the top and the sum of its softmax.
        """
        of_a_target = lists * self.queries * 8 * (k + softmax_over_all)
        return limits.evenly(self.targets, min(limits.MOST_PROGRAMS, max(1, limits.WORKSPACE // max(1, of_a_target))))

    def part(self, targets: slice) -> "Call":
        """The call of these targets alone.

        Its results are theirs in the whole call, to the last bit but where the CUDA scan adds up a softmax: it shares
        the keys of what it is given among all blocks.
        """
        if targets == slice(0, self.targets):
            return self
        query, frames, multiplicity = (x[targets] for x in (self.query, self.frames, self.multiplicity))
        return replace(self, query=query, frames=frames, multiplicity=multiplicity)

    @property
    def targets(self) -> int:
        """Target frames, B."""
        return self.query.shape[0]

    @property
    def queries(self) -> int:
        """Query positions of a target, N."""
        return self.query.shape[1]

    @property
    def positions(self) -> int:
        """Key positions of a frame, M."""
        return self.bank.shape[1]

    @property
    def slots(self) -> int:
        """Context slots of a target, T."""
        return self.frames.shape[1]

    @property
    def bank_frames(self) -> int:
        """Frames of the bank, F: a slot that holds none of them is empty."""
        return self.bank.shape[0]

    @property
    def neighborhood(self) -> bool:
        """Whether keys are bound to a neighborhood."""
        return self.width > 0

    @property
    def scale(self) -> float:
        """Kernels work in powers of two: 2 ** (product * scale) = exp(product / temperature)."""
        return math.log2(math.e) / self.temperature

    def patches(self, size: int, keys: bool = False) -> int:
        """How many patches of `size` queries, or keys, cover a frame."""
        if not self.neighborhood:
            return cdiv(self.positions if keys else self.queries, size)
        wide = tiles.side(size, True)
        return cdiv(self.width, wide) * cdiv(self.queries // self.width, size // wide)

    def grid(self, tile: tiles.Tile, joint: bool) -> tuple[tuple[int, int, int], int]:
        """Programs (tiles of queries, groups of slots, B), and the slots of a group.

        One slot a group if lists are per slot. A joint list is better the longer it lives, so its groups are only as
        many as keep the chip busy.
        """
        across = self.patches(tile.n)
        wanted = cdiv(tiles.programs_at_once(self.query.device), max(1, across * self.together))
        each = cdiv(self.slots, min(self.slots, wanted)) if joint else 1
        return (across, cdiv(self.slots, each), self.targets), each

    @property
    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the queries and of the keys; without a neighborhood one row each."""
        if not self.neighborhood:
            return (1, self.queries), (1, self.positions)
        grid = (self.queries // self.width, self.width)
        return grid, grid

    def tensors(self) -> tuple[Tensor, ...]:
        """The first arguments of every kernel that multiplies."""
        return self.query, self.bank, self.frames, self.multiplicity

    def numbers(self) -> tuple[int | float, ...]:
        """Its numbers, from `bank_frames` to `scale`."""
        queries, keys = self.grids
        strides = (*self.query.stride()[:2], *self.bank.stride()[:2])
        return self.bank_frames, self.slots, *queries, *keys, self.query.shape[2], *strides, *self.reach, self.scale

    def constants(self, tile: tiles.Tile) -> dict[str, object]:
        """Its compile-time arguments."""
        return {
            "NEIGHBORHOOD": self.neighborhood,
            "PRECISION": self.precision,
            "EVEN": self.query.shape[2] % tile.d == 0,
            "N": tile.n,
            "M": tile.m,
            "D": tile.d,
            "N_WIDE": tiles.side(tile.n, self.neighborhood),
            "M_WIDE": tiles.side(tile.m, self.neighborhood),
        }
