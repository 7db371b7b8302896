"""The work items of csrc/cuda/work.cuh, computed on the CPU: for test_cuda_work.py and benchmarks/cuda_balance.py."""

import ctypes
import itertools
import math

import numpy as np
import torch
from timecycle.kernels.plan import Plan
from timecycle.kernels.work import Work

from tests import emulator
from timecycle.ops import Neighborhood, Select
from timecycle.ops.problem import Problem


def load() -> ctypes.CDLL:
    """The emulator's module, which plans as the kernels do."""
    found = ctypes.CDLL(str(emulator.build()))
    found.work_items.restype = ctypes.c_int64
    return found


def plan_of(frames, multiplicity, grid, neighborhood, joint, channels=512) -> Plan:
    """A plan of expanded features, which take no memory."""
    query, bank = (torch.zeros(1, dtype=torch.bfloat16).expand(n, math.prod(grid), channels) for n in (len(frames), 32))
    select = Select(1, 1.0, "joint" if joint else "frame")
    return Plan.of(Problem.of(query, bank, frames, select, neighborhood, multiplicity))


def work_items(library, plan: Plan, multiprocessors: int, lists: int = 1) -> tuple[np.ndarray, Work]:
    """Rows of block, target, queries, slot, first, last, list; and the launch's parameters."""
    work = Work.of(plan, multiprocessors, lists)
    sizes = (len(plan.query), len(plan.bank), *itertools.chain(*plan.grids), plan.slots, work.parts, work.rounds)
    numbers = (ctypes.c_int * 16)(*sizes, work.blocks, *plan.bounds, plan.neighborhood, plan.problem.joint, lists)
    room = work.blocks * (len(plan.query) * plan.slots + 1) * 2 + plan.patches(128) * len(plan.query) * plan.slots
    out = np.zeros((room, 7), np.int64)
    tensors = (plan.frames, plan.multiplicity, work.before)
    pointers = [ctypes.c_void_p(tensor.data_ptr()) for tensor in tensors]
    count = library.work_items(*pointers, numbers, ctypes.c_void_p(out.ctypes.data), ctypes.c_int64(room))
    assert count <= room
    return out[:count], work


PUBLISHED = [
    ((40, 40), 8, None),
    ((50, 50), 8, None),
    ((60, 60), 8, None),
    ((60, 107), 21, Neighborhood(60, 107, 12)),
    ((60, 107), 8, Neighborhood(60, 107, 12, "square<=")),
    ((135, 240), 8, None),
    ((135, 240), 8, Neighborhood(135, 240, 12)),
]
