"""Launch grids of the Triton kernels in calls of very many targets, samples or frames.

A grid's second and third dimension are at most 65,535. Kernels are replaced by mocks, so that no GPU is needed.
"""

import math
from types import SimpleNamespace
from typing import Literal

import pytest
import torch
from torch import Tensor

from timecycle.ops import Select
from timecycle.ops.attention import AttentionProblem
from timecycle.ops.problem import Problem
from timecycle.ops.softmax_at import SoftmaxAtProblem

pytest.importorskip("triton", reason="Triton is not installed")
from timecycle.kernels.launch import Launch
from timecycle.kernels.limits import evenly

from timecycle.kernels import (
    affinity_propagate,
    attention,
    contract,
    propagate_labels,
    softmax_at,
    tiles,
    topk_affinity,
    topk_affinity_backward,
    topk_affinity_cuda,
    topk_affinity_ties,
)

MANY = 70_000
KERNELS = {
    topk_affinity: ["scan", "finish"],
    topk_affinity_ties: ["reached"],
    topk_affinity_backward: ["to_queries", "to_keys"],
    affinity_propagate: ["propagate"],
    propagate_labels: ["gather", "products", "scatter"],
    contract: ["contract"],
    attention: ["normalize", "normalize_backward"],
}


@pytest.fixture(params=["sm_80", "sm_90", "gfx942"])
def programs(request, monkeypatch) -> dict[str, int]:
    """Number of programs by kernel, over all its launches; asserts that grids are within the limits."""
    found: dict[str, int] = {}

    def stand_in(name: str) -> object:
        class Kernel:
            def __getitem__(self, grid: tuple[int, ...]) -> object:
                assert grid[0] < 1 << 31
                assert max(grid[1:], default=1) <= 65_535, f"{name} {grid}"
                found[name] = found.get(name, 0) + math.prod(grid)
                return self.launch

            def launch(self, *arguments: object, **options: object) -> None:
                # Lengths of lists with ties, which the kernel would count.
                for x in arguments:
                    if isinstance(x, Tensor) and x.dtype == torch.int32:
                        x.zero_()

        return Kernel()

    for module, names in KERNELS.items():
        for name in names:
            monkeypatch.setattr(module, name, stand_in(name))
    monkeypatch.setattr(tiles, "family", lambda device: request.param)
    monkeypatch.setattr(tiles, "programs_at_once", lambda device: 264)
    return found


def problem(targets: int, frames: int, ties: Literal["exact", "all"] = "exact") -> Problem:
    """A call of many targets, with one query, slot and channel."""
    query, bank = torch.zeros(targets, 1, 1, dtype=torch.bfloat16), torch.zeros(frames, 1, 1, dtype=torch.bfloat16)
    select = Select(1, 1.0, "frame", "all", ties)
    return Problem.of(query, bank, torch.zeros(targets, 1, dtype=torch.int64), select, None, None)


LABELS = torch.zeros(1, 1, 1)


@pytest.mark.parametrize("ties", ["exact", "all"])
def test_topk_affinity(programs, ties):
    topk_affinity.topk_affinity(problem(MANY, 1, ties))
    assert programs == {"scan": MANY, "finish": MANY} | ({"reached": 2 * MANY} if ties == "all" else {})


def test_affinity_propagate(programs):
    call = problem(MANY, 1)
    affinity_propagate.affinity_propagate(call, LABELS, call.frames)
    assert programs == {"scan": MANY, "propagate": MANY}


def test_kernels_after_the_cuda_module(programs):
    targets = []
    module = SimpleNamespace(
        topk_affinity=lambda plan, *_: targets.append(plan.targets), lists_of_a_block=lambda hopper: 1
    )
    call, launch = problem(MANY, 1), Launch(module, 0, 0, True)
    topk_affinity_cuda.topk_affinity(call, launch)
    topk_affinity_cuda.affinity_propagate(call, LABELS, call.frames, launch)
    assert programs == {"finish": MANY, "propagate": MANY}
    assert sum(targets) == 2 * MANY


def test_gradient_of_topk_affinity(programs):
    weights, indices = torch.ones(MANY, 1, 1), torch.zeros(MANY, 1, 1, dtype=torch.int64)
    topk_affinity_backward.topk_affinity_backward(problem(MANY, MANY), weights, weights, indices, weights)
    assert programs["to_queries"] == programs["to_keys"] == MANY


def test_labels_and_edges(programs):
    weights, indices = torch.ones(MANY, 1, 1), torch.zeros(MANY, 1, 1, dtype=torch.int64)
    frames = torch.zeros(MANY, 1, dtype=torch.int64)
    _, rows = propagate_labels.block(1)
    propagate_labels.propagate_labels(weights, indices, LABELS, frames)
    assert programs == {"gather": -(-MANY // rows)}
    ones = torch.ones(MANY, 1, 1)
    edges = SoftmaxAtProblem(ones, ones, ones[:, :, 0], ones[:, :, 0], indices, 1.0)
    softmax_at.softmax_at(edges)
    softmax_at.softmax_at_backward(edges, weights, ones)
    assert programs["scatter"] == 2 * MANY


@pytest.mark.parametrize(("samples", "shifts"), [(4096, 16), (MANY, 1)], ids=["values of each sample", "many samples"])
def test_attention(programs, samples, shifts):
    query, key = torch.zeros(samples, shifts, 1), torch.zeros(samples, 1, 1)
    value, scale = torch.zeros(samples, shifts, 1, 1), torch.ones(samples, 1)
    call = AttentionProblem(query, key, value, scale, 1.0, list(range(shifts)), 0, 0)
    out, lse = attention.attention(call)
    attention.attention_backward(call, out, lse, out, lse)
    assert programs["normalize"] == programs["normalize_backward"] == samples * -(-shifts // attention.ROWS)
    # Logits forward and backward, out, gradients of softmax, queries and keys, and one a shift for values.
    assert programs["contract"] == (6 + shifts) * samples


def test_parts_are_even():
    assert evenly(0, 3) == []
    assert evenly(3, 3) == [slice(0, 3)]
    assert evenly(10, 4) == [slice(0, 4), slice(4, 8), slice(8, 10)]
    assert evenly(9, 4) == [slice(0, 3), slice(3, 6), slice(6, 9)]
