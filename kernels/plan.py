"""A problem prepared for the kernels of topk_affinity: its tensors, and the numbers that several of them take.

A problem is any object with the fields of timecycle.ops.problem.Problem, where they are explained.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from . import limits, tiles
from .limits import cdiv

SIZES = [
    *("bank_frames", "slots", "height", "width", "key_height", "key_width"),
    *("rows", "columns", "limit"),
]
"""Numbers of a kernel that multiplies which Triton is not to compile it anew for."""


class Bounds(NamedTuple):
    """A neighborhood as three whole numbers, so that kernels need no table.

    Inside is: dy < rows, dx <= columns, dy^2 + dx^2 <= limit.
    """

    rows: int
    columns: int
    limit: int

    @staticmethod
    def of(half_widths: list[int]) -> "Bounds":
        """From the largest |dx| inside d rows away, for each d. Raises ValueError if no three numbers say the same.

        They do for every disc and square, also where the grid cuts it: a row's own bound is met by its widest entry or
        by `limit`, and `limit` is no larger than the disc's own.
        """
        if not half_widths:
            return Bounds(0, -1, -1)
        limit = max(d * d + dx * dx for d, dx in enumerate(half_widths))
        bounds = Bounds(len(half_widths), half_widths[0], limit)
        for d, dx in enumerate(half_widths):
            if dx != min(bounds.columns, math.isqrt(bounds.limit - d * d)):
                raise ValueError(f"half_widths is {half_widths}; expected that of a disc or a square")
        return bounds


class Plan(NamedTuple):
    """A problem, or some of its targets. Letters as in timecycle.ops."""

    problem: Any
    """The whole problem; its tensors are not used."""
    query: Tensor
    """[B, N, D], channels side by side, as the bank's."""
    bank: Tensor
    frames: Tensor
    """[B, T], contiguous, as multiplicity [B, T, 2]."""
    multiplicity: Tensor
    bounds: Bounds
    precision: str
    """Of products: Triton's `input_precision`."""
    whole_targets: int
    """Targets of the whole problem: slots are grouped as they are for all."""
    targets: int
    """B, and the next sizes: of the tensors above, whose shapes take longer to read."""
    queries: int
    """N."""
    channels: int
    """D."""
    bank_frames: int
    """F: a slot that holds none of these frames is empty."""
    positions: int
    """M."""
    slots: int
    """T."""

    @staticmethod
    def of(problem: Any) -> "Plan":
        """For all targets of a problem."""
        query, bank = (x if x.stride(-1) == 1 else x.contiguous() for x in (problem.query, problem.bank))
        return Plan(
            problem,
            query,
            bank,
            problem.frames.contiguous(),
            problem.multiplicity.contiguous(),
            Bounds.of(problem.half_widths),
            tiles.precision(query.dtype),
            query.shape[0],
            *_sizes(query, bank, problem.frames),
        )

    def changed(self, **tensors: Tensor) -> "Plan":
        """The same with other tensors, and their sizes."""
        plan = self._replace(**tensors)
        return Plan(*plan[:8], *_sizes(plan.query, plan.bank, plan.frames))

    def parts(self, lists: int) -> list[slice]:
        """Targets to work on at a time, to bound the memory of candidates with `lists` lists per query.

        A candidate is 8 bytes; a softmax over all keys has 8 more of each list, its top and its sum.
        """
        of_a_target = lists * self.queries * 8 * (self.problem.k + self.problem.softmax_over_all)
        return limits.evenly(self.targets, min(limits.MOST_PROGRAMS, max(1, limits.WORKSPACE // max(1, of_a_target))))

    def part(self, targets: slice) -> "Plan":
        """The part of these targets.

        Results are bitwise those of the whole problem, except where the CUDA scan sums a softmax: it divides the keys
        of each launch among all blocks.
        """
        if targets == slice(0, self.targets):
            return self
        query, frames, multiplicity = (x[targets] for x in (self.query, self.frames, self.multiplicity))
        return self.changed(query=query, frames=frames, multiplicity=multiplicity)

    @property
    def groups(self) -> int:
        """Lists of a query in the end."""
        return 1 if self.problem.joint else self.slots

    @property
    def neighborhood(self) -> bool:
        """Whether keys are bound to a neighborhood."""
        return self.problem.grid_width > 0

    @property
    def is_bfloat16(self) -> bool:
        """Whether features are bfloat16; the CUDA module takes only that and float16."""
        return self.query.dtype == torch.bfloat16

    @property
    def softmax_scale_log2(self) -> float:
        """Kernels work in powers of two: 2 ** (product * softmax_scale_log2) = exp(product / temperature)."""
        return math.log2(math.e) / self.problem.temperature

    def patches(self, size: int, keys: bool = False) -> int:
        """How many patches of `size` queries, or keys, cover a frame."""
        if not self.neighborhood:
            return cdiv(self.positions if keys else self.queries, size)
        wide = tiles.side(size, True)
        return cdiv(self.problem.grid_width, wide) * cdiv(self.queries // self.problem.grid_width, size // wide)

    def launch_grid(self, tile: tiles.Tile) -> tuple[tuple[int, int, int], int]:
        """Programs (tiles of queries, groups of slots, B), and the slots of a group.

        One slot a group if lists are per slot. A joint list is better the longer it lives, so its groups are only as
        many as keep the chip busy.
        """
        across = self.patches(tile.n)
        wanted = cdiv(tiles.programs_at_once(self.query.device), max(1, across * self.whole_targets))
        each = cdiv(self.slots, min(self.slots, wanted)) if self.problem.joint else 1
        return (across, cdiv(self.slots, each), self.targets), each

    @property
    def grids(self) -> tuple[tuple[int, int], tuple[int, int]]:
        """Rows and columns of the queries and of the keys; without a neighborhood one row each."""
        if not self.neighborhood:
            return (1, self.queries), (1, self.positions)
        grid = (self.queries // self.problem.grid_width, self.problem.grid_width)
        return grid, grid

    @property
    def strides(self) -> tuple[int, ...]:
        """From one target's queries, and one query, to the next; from one frame's keys, and one key, to the next."""
        return *self.query.stride()[:2], *self.bank.stride()[:2]

    def tensors(self) -> tuple[Tensor, ...]:
        """The first arguments of a kernel that multiplies."""
        return self.query, self.bank, self.frames, self.multiplicity

    def numbers(self) -> tuple[int | float, ...]:
        """Its numbers, from `bank_frames` to `softmax_scale_log2`."""
        queries, keys = self.grids
        sizes = (self.bank_frames, self.slots, *queries, *keys, self.channels)
        return *sizes, *self.strides, *self.bounds, self.softmax_scale_log2

    def constants(self, tile: tiles.Tile) -> dict[str, object]:
        """Its compile-time arguments."""
        return {
            "NEIGHBORHOOD": self.neighborhood,
            "PRECISION": self.precision,
            "EVEN": self.channels % tile.d == 0,
            "N": tile.n,
            "M": tile.m,
            "D": tile.d,
            "N_WIDE": tiles.side(tile.n, self.neighborhood),
            "M_WIDE": tiles.side(tile.m, self.neighborhood),
        }


def _sizes(query: Tensor, bank: Tensor, frames: Tensor) -> tuple[int, ...]:
    """Plan's sizes, from `targets` to `slots`."""
    return *query.shape, *bank.shape[:2], frames.shape[1]
