"""A problem prepared for the kernels of topk_affinity: its tensors, and the arguments that several kernels share.

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
"""Arguments of multiplying kernels for whose values Triton must not specialize."""


class Bounds(NamedTuple):
    """A neighborhood as three integers, so that kernels need no table.

    A key is inside if dy < rows, dx <= columns and dy^2 + dx^2 <= limit.
    """

    rows: int
    columns: int
    limit: int

    @staticmethod
    def of(half_widths: list[int]) -> "Bounds":
        """From the half width at each distance in rows. Raises ValueError if three integers cannot describe them.

        They can describe every disc and square, even if the grid is smaller: a half width is limited by `columns` or by
        `limit`, and `limit` is no larger than the squared radius of the disc.
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
    """[B, N, D], with contiguous channels, like the bank."""
    bank: Tensor
    frames: Tensor
    """[B, T], contiguous, like multiplicity [B, T, 2]."""
    multiplicity: Tensor
    bounds: Bounds
    precision: str
    """Triton's `input_precision` of products."""
    whole_targets: int
    """Targets of the whole problem, on which the grouping of slots depends."""
    targets: int
    """B. This and the following sizes are stored, since reading a tensor's shape takes longer."""
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
        """The plan for all targets of a problem."""
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
        """The same plan with other tensors and their sizes."""
        plan = self._replace(**tensors)
        return Plan(*plan[:8], *_sizes(plan.query, plan.bank, plan.frames))

    def parts(self, lists: int) -> list[slice]:
        """Targets to work on at a time, to bound the memory of candidates with `lists` lists per query.

        A candidate has 8 bytes; with a softmax over all keys a list has 8 more, its maximum and its sum.
        """
        of_a_target = lists * self.queries * 8 * (self.problem.k + self.problem.softmax_over_all)
        return limits.evenly(self.targets, min(limits.MOST_PROGRAMS, max(1, limits.WORKSPACE // max(1, of_a_target))))

    def part(self, targets: slice) -> "Plan":
        """The plan for some of the targets.

        Results are bitwise those of the whole problem, except for a softmax over all keys by the CUDA scan, which
        divides the keys of each launch among all blocks.
        """
        if targets == slice(0, self.targets):
            return self
        query, frames, multiplicity = (x[targets] for x in (self.query, self.frames, self.multiplicity))
        return self.changed(query=query, frames=frames, multiplicity=multiplicity)

    @property
    def groups(self) -> int:
        """Lists per query in the result."""
        return 1 if self.problem.joint else self.slots

    @property
    def neighborhood(self) -> bool:
        """Whether there is a neighborhood."""
        return self.problem.grid_width > 0

    @property
    def is_bfloat16(self) -> bool:
        """Whether features are bfloat16; the CUDA module takes only that and float16."""
        return self.query.dtype == torch.bfloat16

    @property
    def softmax_scale_log2(self) -> float:
        """The scale for kernels, which use exp2: 2 ** (product * softmax_scale_log2) = exp(product / temperature)."""
        return math.log2(math.e) / self.problem.temperature

    def patches(self, size: int, keys: bool = False) -> int:
        """How many patches of `size` queries, or keys, cover a frame."""
        if not self.neighborhood:
            return cdiv(self.positions if keys else self.queries, size)
        wide = tiles.side(size, True)
        return cdiv(self.problem.grid_width, wide) * cdiv(self.queries // self.problem.grid_width, size // wide)

    def launch_grid(self, tile: tiles.Tile) -> tuple[tuple[int, int, int], int]:
        """The grid (tiles of queries, groups of slots, B), and the slots per group.

        If lists are per slot, a group is one slot. A joint list needs fewer insertions the more slots it covers, so
        there are only as many groups as occupy the GPU.
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
        """Strides of targets and queries in `query`, and of frames and keys in `bank`."""
        return *self.query.stride()[:2], *self.bank.stride()[:2]

    def tensors(self) -> tuple[Tensor, ...]:
        """The first arguments of multiplying kernels."""
        return self.query, self.bank, self.frames, self.multiplicity

    def numbers(self) -> tuple[int | float, ...]:
        """Arguments of multiplying kernels, from `bank_frames` to `softmax_scale_log2`."""
        queries, keys = self.grids
        sizes = (self.bank_frames, self.slots, *queries, *keys, self.channels)
        return *sizes, *self.strides, *self.bounds, self.softmax_scale_log2

    def constants(self, tile: tiles.Tile) -> dict[str, object]:
        """Compile-time arguments of multiplying kernels."""
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
    """The sizes of a Plan, from `targets` to `slots`."""
    return *query.shape, *bank.shape[:2], frames.shape[1]
