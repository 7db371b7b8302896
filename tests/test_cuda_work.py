"""Work distribution of the CUDA scan (csrc/cuda/work.cuh, kernels/work.py): complete, disjoint, balanced."""

import ctypes
import itertools

import numpy as np
import pytest
import torch

from tests import emulator
from timecycle.ops import Neighborhood

pytest.importorskip("triton", reason="Triton is not installed, whose kernels finish those of CUDA")
from tests import work_cases
from tests.work_cases import PUBLISHED, plan_of, work_items

pytestmark = pytest.mark.skipif(emulator.COMPILER is None, reason="there is no C++ compiler for the emulator")


@pytest.fixture(scope="module")
def library() -> ctypes.CDLL:
    return work_cases.load()


@pytest.mark.parametrize("multiprocessors", [132, 108, 114, 78])
@pytest.mark.parametrize(("grid", "slots", "neighborhood"), PUBLISHED)
@pytest.mark.parametrize("targets", [1, 16])
def test_blocks_differ_by_one_patch_at_most(library, grid, slots, neighborhood, targets, multiprocessors):
    frames = torch.arange(slots).expand(targets, slots).contiguous()
    multiplicity = torch.tensor([1, 0 if neighborhood else 1]).expand(targets, slots, 2)
    plan = plan_of(frames, multiplicity, grid, neighborhood, neighborhood is not None)
    found, work = work_items(library, plan, multiprocessors)
    assert work.blocks == multiprocessors
    shares = np.bincount(found[:, 0], weights=found[:, 5] - found[:, 4], minlength=multiprocessors)
    assert shares.max() - shares.min() <= 1


@pytest.mark.parametrize("seed", range(60))
def test_every_patch_is_taken_once_and_lists_have_disjoint_storage(library, seed):
    random = np.random.default_rng(seed)
    grid = (int(random.integers(1, 40)), int(random.integers(1, 70)))
    neighborhood = Neighborhood(*grid, int(random.integers(1, 9))) if random.integers(2) else None
    targets, slots, joint = int(random.integers(1, 5)), int(random.integers(1, 6)), bool(random.integers(2))
    frames = torch.from_numpy(random.integers(-1, 34, (targets, slots)))  # of which 32 and 33 are outside the bank
    multiplicity = torch.from_numpy(random.integers(0, 3, (targets, slots, 2)))
    plan = plan_of(frames, multiplicity, grid, neighborhood, joint)
    each = seed % 2 + 1  # lists of a block
    found, work = work_items(library, plan, int(random.integers(1, 160)), each)
    taken: dict[tuple[int, ...], int] = {}
    lists: dict[tuple[int, ...], tuple[int, ...]] = {}
    for block, target, queries, slot, first, last, number in found.tolist():
        assert taken.get((target, queries, slot), 0) == first < last
        taken[target, queries, slot] = last
        group = 0 if joint else slot
        assert each * work.parts * group <= number < each * work.parts * (group + 1)
        assert lists.setdefault((target, queries, number), (block, group)) == (block, group)
    before, whole = work.before.tolist(), plan.patches(128, keys=True)
    for b, p, t in itertools.product(range(targets), range(len(before) - 1), range(slots)):
        inside, outside = multiplicity[b, t].tolist()
        seen = whole if neighborhood and outside else (before[p + 1] - before[p]) * (inside > 0)
        assert taken.get((b, p, t), 0) == seen * (0 <= frames[b, t] < 32)
