"""How the CUDA scan divides its work among blocks: the arguments that csrc/cuda/work.cuh needs of a plan.

Keys are divided into patches of 128. Every block, one per multiprocessor, gets consecutive patches of a round of
targets, a stretch. Each stretch has its own list of a query, or two (lists_of_a_block in csrc/cuda/topk_affinity.h);
the outputs hold the lists of all stretches that can have keys of one list.
"""

from typing import NamedTuple

import torch
from torch import Tensor

from . import tiles
from .limits import cdiv
from .plan import Bounds, Plan

KEYS = 128
"""Positions of a patch, of queries and of keys."""
MOST_BLOCKS = 255
"""Most blocks, since csrc/cuda cannot number more parts of a list. No GPU has as many multiprocessors."""
CACHE = 24 << 20
"""Most bytes of keys that the targets of one round read: half of an H100's L2 cache, whose halves each hold a copy of
what all multiprocessors read."""


class Work(NamedTuple):
    """Arguments of a launch. `before` [P + 1] int32: key patches seen by all query patches before each one."""

    before: Tensor
    blocks: int
    rounds: int
    parts: int
    """Most blocks that can have keys of the same list."""
    lists: int
    """Lists per query: those of a block, times parts, times groups of slots."""

    @staticmethod
    def of(plan: Plan, blocks: int, lists_of_a_block: int) -> "Work":
        """For a plan, or a part of one, on at most `blocks` blocks. `parts` is the same for all parts of a plan."""
        before, through_neighborhood, most = patches(
            *plan.grids, plan.bounds if plan.neighborhood else None, plan.query.device
        )
        all_keys = plan.patches(KEYS, keys=True)
        together = CACHE // max(1, plan.positions * plan.channels * plan.query.element_size()) - plan.slots
        rounds = cdiv(plan.targets, max(1, min(plan.targets, together)))
        # Of one target: key patches if every slot is restricted to the neighborhood, or if none is.
        units = [plan.slots * units for units in (through_neighborhood, all_keys * plan.patches(KEYS))]
        blocks = max(1, min(blocks, MOST_BLOCKS, *units))
        shares = [max(1, total // blocks) for total in units]
        if plan.problem.joint:
            lists = [(plan.slots * most, shares[0]), (plan.slots * all_keys, shares[1])]
        else:  # one slot may be unrestricted where the others are not
            lists = [(all_keys if plan.neighborhood else most, shares[0])]
        parts = max(1, *(cdiv(keys - 1, share) + 1 for keys, share in lists))
        return Work(before, blocks, rounds, parts, lists_of_a_block * parts * plan.groups)


def blocks_at_once(device: torch.device) -> int:
    """One per multiprocessor."""
    return max(1, tiles.programs_at_once(device) // 2)


Counts = tuple[Tensor, int, int]
_COUNTED: dict[tuple, tuple[Counts, torch.cuda.Event | None]] = {}
"""By shape, never freed: up to a few kilobytes of GPU memory each. The event marks the end of the work that computes
`before`, and is None once that has ended."""


def patches(queries: tuple[int, int], keys: tuple[int, int], bounds: Bounds | None, device: torch.device) -> Counts:
    """Work.before, its last entry, and the most patches that one query patch sees; counted as in csrc/cuda/patches.cuh.

    Cached and never freed, since a CUDA graph may read `before` for as long as it exists. Tensors made during the
    capture of a graph belong to that graph, and are undefined until it runs: they are not cached.
    """
    shape = (queries, keys, bounds, device)
    if shape not in _COUNTED:
        counts, made = _counted(*shape), None
        if device.type != "cpu":
            if torch.cuda.is_current_stream_capturing():
                return counts
            made = torch.cuda.Event()
            made.record()
        _COUNTED[shape] = counts, made
        return counts
    counts, made = _COUNTED[shape]
    if made is not None and not torch.cuda.is_current_stream_capturing():
        if made.query():
            _COUNTED[shape] = counts, None
        else:
            made.wait()  # this may be the first call on its stream
    return counts


def _counted(queries: tuple[int, int], keys: tuple[int, int], bounds: Bounds | None, device: torch.device) -> Counts:
    here = _before(queries, keys, bounds, torch.device("cpu"))
    # Computed again on the device: a copy would synchronize.
    before = here if device.type == "cpu" else _before(queries, keys, bounds, device)
    counts = here.diff().tolist()
    return before, sum(counts), max(counts, default=0)


def _before(queries: tuple[int, int], keys: tuple[int, int], bounds: Bounds | None, device: torch.device) -> Tensor:
    wide = tiles.side(KEYS, bounds is not None)
    tall = KEYS // wide
    down, across = (cdiv(size, step) for size, step in zip(queries, (tall, wide), strict=True))
    if bounds is None:
        return torch.arange(down * across + 1, dtype=torch.int32, device=device) * cdiv(keys[1], wide)
    dy = _apart(down, tall, bounds.rows - 1, keys[0], device)[:, None, :, None]
    dx = _apart(across, wide, bounds.columns, keys[1], device)[None, :, None, :]
    near = (dy < bounds.rows) & (dx <= bounds.columns) & (dy * dy + dx * dx <= bounds.limit)
    counts = near.sum(dim=(2, 3)).flatten().cumsum(0)
    return torch.nn.functional.pad(counts, (1, 0)).to(torch.int32)


def _apart(count: int, size: int, reach: int, end: int, device: torch.device) -> Tensor:
    """For each of `count` intervals of `size` rows (or columns): its distances from the key intervals that it may see.

    [count, the most of one]; a large number where there are fewer.
    """
    start = torch.arange(count, device=device)[:, None] * size
    first, last = (start - reach).clamp(min=0), (start + size + reach).clamp(max=end)
    key = first + torch.arange(cdiv(size + 2 * reach, size) + 1, device=device) * size
    apart = torch.maximum(start - (key + size - 1), key - (start + size - 1)).clamp(min=0)
    return torch.where(key < last, apart, 1 << 20)
