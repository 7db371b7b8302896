"""Arguments of a call of topk_affinity, as every backend takes them.

The kernels in Triton, C++ and CUDA name its fields as they are named here.
"""

import os
from typing import NamedTuple

import torch
from torch import Tensor

from timecycle.errors import InputError
from timecycle.kernels.tiles import LARGEST_K
from timecycle.ops.checks import DTYPE_NAMES, DTYPES, Doubt, bounds_checked, finite_doubt, outside, wide_dtype
from timecycle.ops.selection import MOST_KEPT, Neighborhood, Select, inside

LARGEST_MULTIPLICITY = 2**24
"""The largest count of a key: kernels sum them in float32, which holds no more whole numbers."""

_ENTRY_BYTES = 4 * 64 * 8
"""Least bytes per entry of a list: a thread of the CPU kernel works on four tiles of 64 queries."""


class Problem(NamedTuple):
    """Queries, keys and which of them are kept. Letters as in timecycle.ops."""

    query: Tensor
    """[B, N, D] float32, bfloat16, float16 or float64."""
    bank: Tensor
    """[F, M, D], same dtype and device."""
    frames: Tensor
    """[B, T] int64: the frame of the bank in each slot; -1 is an empty slot."""
    multiplicity: Tensor
    """[B, T, 2] int64: how often a slot's keys count inside and outside the neighborhood."""
    k: int
    """Neighbors kept, in each slot or, if `joint`, over all slots."""
    temperature: float
    joint: bool
    """Select.scope is "joint": one list for all slots of a query instead of one for each."""
    softmax_over_all: bool
    """Select.softmax_over is "all": the softmax is over all keys instead of the kept ones."""
    keep_ties: bool
    """Select.ties is "all": a list is as long as all that equals its k-th value takes."""
    grid_width: int
    """Columns of the grid that queries and keys are positions of; 0 without a neighborhood."""
    half_widths: list[int]
    """Neighborhood.half_widths(); empty without a neighborhood."""

    @staticmethod
    def of(
        query: Tensor,
        bank: Tensor,
        frames: Tensor,
        select: Select,
        neighborhood: Neighborhood | None,
        multiplicity: Tensor | None,
    ) -> "Problem":
        """From the arguments of the public functions, which are checked: InputError for what does not fit together."""
        _check_shapes(query, bank, frames, neighborhood, multiplicity)
        return Problem(
            query,
            bank,
            frames,
            _expand_multiplicity(multiplicity, neighborhood, frames),
            select.k,
            select.temperature,
            joint=select.scope == "joint",
            softmax_over_all=select.softmax_over == "all",
            keep_ties=select.ties == "all",
            grid_width=neighborhood.width if neighborhood is not None else 0,
            half_widths=neighborhood.half_widths() if neighborhood is not None else [],
        )

    @property
    def device(self) -> torch.device:
        """Device of the tensors."""
        return self.query.device

    @property
    def wide_dtype(self) -> torch.dtype:
        """Dtype of sums and weights."""
        return wide_dtype(self.query)

    @property
    def slots(self) -> int:
        """Context slots of a target, T."""
        return self.frames.shape[1]

    @property
    def positions(self) -> int:
        """Key positions of a frame, M."""
        return self.bank.shape[1]

    @property
    def groups(self) -> int:
        """Lists of a query."""
        return 1 if self.joint else self.slots

    def keeping(self, k: int) -> "Problem":
        """The same with another k."""
        return self if k == self.k else self._replace(k=k)

    def inside(self) -> Tensor | None:
        """Which keys [N, M] of a frame each query may see, bool; None without a neighborhood."""
        if not self.grid_width:
            return None
        return inside(self.grid_width, self.half_widths, self.query.shape[1], self.device)


def _check_shapes(
    query: Tensor, bank: Tensor, frames: Tensor, neighborhood: Neighborhood | None, multiplicity: Tensor | None
) -> None:
    """Refuse, before any work, what cannot fit together: InputError."""
    if query.ndim != 3 or not query.shape[2]:
        raise InputError(f"query has shape {list(query.shape)}; expected [B, N, D], D >= 1")
    if bank.ndim != 3 or bank.shape[2] != query.shape[2]:
        raise InputError(f"bank has shape {list(bank.shape)}; expected [F, M, {query.shape[2]}] like query's channels")
    rows, slots = frames.shape if frames.ndim == 2 else (-1, 0)
    if rows != query.shape[0] or not slots or frames.dtype != torch.int64:
        raise InputError(
            f"frames is {frames.dtype} {list(frames.shape)}; expected int64 [{query.shape[0]}, T], T >= 1 a target"
        )
    if bank.dtype != query.dtype or query.dtype not in DTYPES:
        raise InputError(f"query is {query.dtype} and bank {bank.dtype}; expected {DTYPE_NAMES}, one for both")
    if not query.device == bank.device == frames.device:
        raise InputError(
            f"query is on {query.device}, bank on {bank.device} and frames on {frames.device}; expected one device"
        )
    if neighborhood is not None:
        positions = neighborhood.height * neighborhood.width
        if positions != bank.shape[1] or positions != query.shape[1]:
            raise InputError(
                f"neighborhood is a grid of {neighborhood.height} x {neighborhood.width} = {positions} positions; "
                f"expected as many as there are queries ({query.shape[1]}) and keys of a frame ({bank.shape[1]})"
            )
    if multiplicity is not None and (
        multiplicity.dtype != torch.int64 or list(multiplicity.shape) not in ([slots, 2], [rows, slots, 2])
    ):
        raise InputError(
            f"multiplicity is {multiplicity.dtype} {list(multiplicity.shape)}; expected int64 [{slots}, 2] or "
            f"[{rows}, {slots}, 2]"
        )


def _expand_multiplicity(multiplicity: Tensor | None, neighborhood: Neighborhood | None, frames: Tensor) -> Tensor:
    """The multiplicity as [B, T, 2], from [T, 2], [B, T, 2] or None."""
    if multiplicity is not None:
        return multiplicity.to(frames).expand(*frames.shape, 2)
    if neighborhood is None:
        return frames.new_ones((*frames.shape, 2))
    # 1 and 0, without a copy to a GPU, for which the CPU would wait.
    return torch.arange(1, -1, -1, device=frames.device).expand(*frames.shape, 2)


def value_doubts(problem: Problem, check: bool) -> list[Doubt]:
    """Checks of values: frames in the bank, multiplicity in range; with `check` finite features."""
    doubts = []
    frames, multiplicity, end = problem.frames, problem.multiplicity, len(problem.bank)
    if bounds_checked(check, frames):
        doubts = [
            Doubt(
                outside(frames, -1, end),
                lambda: f"frames holds {frames.tolist()}; expected frames of the bank, -1 to {end - 1}",
            ),
            Doubt(outside(multiplicity, 0, LARGEST_MULTIPLICITY + 1), lambda: _wrong_count(multiplicity)),
        ]
    return [*doubts, finite_doubt("query", problem.query), finite_doubt("bank", problem.bank)] if check else doubts


def _wrong_count(multiplicity: Tensor) -> str:
    least, largest = int(multiplicity.min()), int(multiplicity.max())
    if least < 0:
        return f"multiplicity holds {least}; expected counts of zero or more"
    return f"multiplicity holds {largest}; expected counts of at most {LARGEST_MULTIPLICITY}"


def list_length(problem: Problem) -> int:
    """How long lists must be: k, or the entries that all keys of a list can take if those are fewer.

    Refuses a list that does not fit the memory, and with ties more entries than 32 bits count: InputError. On a GPU no
    value is read for the short lists that its kernels have, as the CPU would wait for it.
    """
    if problem.k <= LARGEST_K and (not problem.keep_ties or problem.device.type == "cuda"):
        return problem.k
    most = problem.multiplicity.clamp(0, LARGEST_MULTIPLICITY).amax(dim=2)
    of_list = most.sum(dim=1) if problem.joint else most.amax(dim=1)
    entries = problem.positions * int(of_list.max()) if len(of_list) else 0
    if problem.keep_ties and entries > MOST_KEPT:
        raise InputError(f'the keys of a list count {entries} times; expected at most {MOST_KEPT} with ties="all"')
    length = max(1, min(problem.k, entries))
    refuse_beyond_memory(length * _ENTRY_BYTES, problem.device, f"lists of {length} neighbors")
    return length


def refuse_beyond_memory(size: int, device: torch.device, what: str) -> None:
    """Refuse what takes so many bytes, more than the device has: InputError."""
    if device.type == "cuda":
        memory = torch.cuda.get_device_properties(device).total_memory
    else:
        memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    if size > memory:
        raise InputError(
            f"{what} take {size / 1e9:,.0f} GB; expected no more than the memory of {memory / 1e9:,.0f} GB"
        )
