"""How the CUDA scan shares its work among blocks: the numbers that csrc/cuda/work.cuh needs of a call.

Keys are taken in patches of 128. Every block, one a multiprocessor, gets a stretch of the patches of a round of
targets. What a query finds in one stretch is two lists of its own; there must be room for those of all stretches that
can have keys of one list.
"""

import functools
from dataclasses import dataclass

import torch
from torch import Tensor

from . import tiles
from .call import Call, Reach

KEYS = 128
"""Positions of a patch, of queries and of keys alike."""
REGION_TILE = (8, 16)
"""Rows and columns of such a patch with a region."""
MOST_BLOCKS = 255
"""For which csrc/cuda has room to number the parts of a list; no chip has as many multiprocessors."""
CACHE = 24 << 20
"""Bytes of keys that targets of one round may read together: half of an H100's L2, each half of which has its own copy
of what all multiprocessors read."""


@dataclass(frozen=True)
class Work:
    """What a launch is told. `before` [P + 1] int32: key patches that the query patches before each one see."""

    before: Tensor
    blocks: int
    rounds: int
    parts: int
    """Most blocks that have some keys of one list."""

    @staticmethod
    def of(call: Call, joint: bool, blocks: int) -> "Work":
        """For a call, or a part of one, on at most so many blocks. `parts` is the same for all parts of a call."""
        before, through_region, most = patches(*grid_of(call), call.reach if call.region else None, call.query.device)
        all_keys = call.patches(KEYS, keys=True)
        together = CACHE // max(1, call.positions * call.query.shape[2] * call.query.element_size()) - call.slots
        rounds = -(-len(call.query) // max(1, min(len(call.query), together)))
        # Of one target: all slots seen through the region, or all seen whole. Every block has a share of either.
        units = [call.slots * units for units in (through_region, all_keys * call.patches(KEYS))]
        blocks = max(1, min(blocks, MOST_BLOCKS, *units))
        shares = [max(1, total // blocks) for total in units]
        if joint:
            lists = [(call.slots * most, shares[0]), (call.slots * all_keys, shares[1])]
        else:  # one slot may be seen whole where the others are not
            lists = [(all_keys if call.region else most, shares[0])]
        parts = max(1, *(-(-(keys - 1) // share) + 1 for keys, share in lists))
        return Work(before, blocks, rounds, parts)


def blocks_at_once(device: torch.device) -> int:
    """One a multiprocessor."""
    return max(1, tiles.programs_at_once(device) // 2)


def grid_of(call: Call) -> tuple[tuple[int, int], tuple[int, int]]:
    """Rows and columns of the queries and of the keys; one row each without a region."""
    if not call.region:
        return (1, call.queries), (1, call.positions)
    grid = (call.queries // call.width, call.width)
    return grid, grid


@functools.lru_cache(maxsize=64)
def patches(
    queries: tuple[int, int], keys: tuple[int, int], reach: Reach | None, device: torch.device
) -> tuple[Tensor, int, int]:
    """Work.before, its last entry, and the most that one query patch sees; counted as csrc/cuda/patches.cuh does."""
    tall, wide = REGION_TILE if reach else (1, KEYS)
    down, across = (-(-size // step) for size, step in zip(queries, (tall, wide), strict=True))
    if reach is None:
        seen = -(-keys[1] // wide)
        return torch.arange(0, seen * across + 1, seen, dtype=torch.int32, device=device), seen * across, seen
    rows = _apart(down, tall, reach.rows - 1, keys[0])
    columns = _apart(across, wide, reach.columns, keys[1])
    counts = [
        sum(dy < reach.rows and dx <= reach.columns and dy * dy + dx * dx <= reach.limit for dy in y for dx in x)
        for y in rows
        for x in columns
    ]
    before = torch.tensor([0, *counts], dtype=torch.int32).cumsum(0, dtype=torch.int32)
    if device.type == "cuda":  # without waiting; the memory stays with the cached result
        before = before.pin_memory().to(device, non_blocking=True)
    return before, sum(counts), max(counts)


def _apart(count: int, size: int, reach: int, end: int) -> list[list[int]]:
    """For each of `count` stretches of `size`: how far from it the stretches of keys are that cover what it may see."""
    found = []
    for start in range(0, count * size, size):
        first, last = max(0, start - reach), min(end, start + size + reach)
        found.append([max(0, start - (key + size - 1), key - (start + size - 1)) for key in range(first, last, size)])
    return found
