"""How the CUDA scan shares its work (csrc/cuda/work.cuh, kernels/work.py): all of it, once, and in equal parts."""

import ctypes
import itertools
import math

import numpy as np
import pytest
import torch

from tests import emulator
from timecycle.ops import Region

pytest.importorskip("triton", reason="Triton is not installed, and finishes what the CUDA kernels find")
from timecycle.kernels.call import Call
from timecycle.kernels.topk_affinity_cuda import grid_of
from timecycle.kernels.work import Work

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason="there is no C++ compiler for the emulator")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    found = ctypes.CDLL(str(emulator.build()))
    found.work_pieces.restype = ctypes.c_int64
    return found


def call_of(frames, copies, grid, region, joint, channels=512) -> Call:
    """A call of features that take no memory."""
    reach = region.reach() if region else []
    query, bank = (torch.zeros(1, dtype=torch.bfloat16).expand(n, math.prod(grid), channels) for n in (len(frames), 32))
    return Call.of(query, bank, frames, copies, 1.0, joint, grid[1] if region else 0, reach)


def pieces(library, call: Call, joint: bool, multiprocessors: int) -> tuple[np.ndarray, Work]:
    """Rows of block, target, queries, slot, first, last, list; and the numbers that the launch is told."""
    work = Work.of(call, joint, multiprocessors)
    sizes = (len(call.query), len(call.bank), *itertools.chain(*grid_of(call)), call.slots, work.parts, work.rounds)
    numbers = (ctypes.c_int * 15)(*sizes, work.blocks, *call.reach, call.region, joint)
    room = work.blocks * (len(call.query) * call.slots + 1) * 2 + call.patches(128) * len(call.query) * call.slots
    out = np.zeros((room, 7), np.int64)
    tensors = (call.frames, call.copies, work.before)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    count = library.work_pieces(*pointers, numbers, ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(room))
    assert count <= room
    return out[:count], work


PUBLISHED = [
    ((40, 40), 8, None),
    ((50, 50), 8, None),
    ((60, 60), 8, None),
    ((60, 107), 21, Region(60, 107, 12)),
    ((60, 107), 8, Region(60, 107, 12, "square<=")),
    ((135, 240), 8, None),
    ((135, 240), 8, Region(135, 240, 12)),
]


@pytest.mark.parametrize("multiprocessors", [132, 108, 114, 78])
@pytest.mark.parametrize(("grid", "slots", "region"), PUBLISHED)
@pytest.mark.parametrize("targets", [1, 16])
def test_blocks_differ_by_one_patch_at_most(library, grid, slots, region, targets, multiprocessors):
    frames = torch.arange(slots).expand(targets, slots).contiguous()
    copies = torch.tensor([1, 0 if region else 1]).expand(targets, slots, 2)
    call = call_of(frames, copies, grid, region, joint := region is not None)
    found, work = pieces(library, call, joint, multiprocessors)
    assert work.blocks == multiprocessors
    shares = np.bincount(found[:, 0], weights=found[:, 5] - found[:, 4], minlength=multiprocessors)
    assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize("seed", range(60))
def test_every_patch_is_taken_once_and_every_list_has_its_room(library, seed):
    random = np.random.default_rng(seed)
    grid = (int(random.integers(1, 40)), int(random.integers(1, 70)))
    region = Region(*grid, int(random.integers(1, 9))) if random.integers(2) else None
    targets, slots, joint = int(random.integers(1, 5)), int(random.integers(1, 6)), bool(random.integers(2))
    frames = torch.from_numpy(random.integers(-1, 34, (targets, slots)))  # of which 32 and 33 are outside the bank
    copies = torch.from_numpy(random.integers(0, 3, (targets, slots, 2)))
    call = call_of(frames, copies, grid, region, joint)
    found, work = pieces(library, call, joint, int(random.integers(1, 160)))
    taken: dict[tuple[int, ...], int] = {}
    lists: dict[tuple[int, ...], tuple[int, ...]] = {}
    for block, target, queries, slot, first, last, number in found.tolist():
        assert taken.get((target, queries, slot), 0) == first < last
        taken[target, queries, slot] = last
        group = 0 if joint else slot
        assert 2 * work.parts * group <= number < 2 * work.parts * (group + 1)
        assert lists.setdefault((target, queries, number), (block, group)) == (block, group)
    before, whole = work.before.tolist(), call.patches(128, keys=True)
    for b, p, t in itertools.product(range(targets), range(len(before) - 1), range(slots)):
        inside, outside = copies[b, t].tolist()
        seen = whole if region and outside else (before[p + 1] - before[p]) * (inside > 0)
        assert taken.get((b, p, t), 0) == seen * (0 <= frames[b, t] < 32)
