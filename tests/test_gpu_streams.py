"""The operators on a stream that is not the default one, and on a GPU that is not the current one.

`make gpu-check` runs this file on a GPU; without one there is no stream.
"""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from tests.contract import normal, whole
from tests.sequence_cases import video
from timecycle import ops
from timecycle.ops.backends import CUDA_MISSING

needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")
CYCLES = 2_000_000_000  # of a GPU's clock: about a second, far more than an operator takes here
FRAMES = torch.tensor([[0, 1, 2], [2, -1, 0]])
Inputs = tuple[Tensor, ...]


def features(dtype: torch.dtype) -> Inputs:
    return whole(1, 2, 300, 64).to(dtype), whole(2, 3, 300, 64).to(dtype), FRAMES


def selected(backend: str, *, joint: bool = False, ties: bool = False) -> Callable[..., Inputs]:
    """topk_affinity and affinity_propagate, everywhere and in a neighborhood."""
    select = ops.Select(5, 8.0, "joint" if joint else "frame", "all", "all" if ties else "exact")

    def run(query: Tensor, bank: Tensor, frames: Tensor) -> Inputs:
        labels = bank[:, :, :3].float()
        found: list[Tensor] = []
        for neighborhood in (None, ops.Neighborhood(15, 20, 4)):
            options = {"neighborhood": neighborhood, "backend": backend}
            found += ops.topk_affinity(query, bank, frames, select, **options)
            found.append(ops.affinity_propagate(query, bank, frames, labels, frames, select, **options))
        return tuple(found)

    return run


def gradients(query: Tensor, bank: Tensor, frames: Tensor) -> Inputs:
    leaves = [x.detach().requires_grad_() for x in (query, bank, bank[:, :, :3].float())]
    select = ops.Select(5, 8.0, "frame", "all")
    out = ops.affinity_propagate(*leaves[:2], frames, leaves[2], frames, select, backend="triton")
    return torch.autograd.grad(out.square().sum(), leaves)


def labels(weights: Tensor, indices: Tensor, maps: Tensor, frames: Tensor, *_: Tensor) -> Inputs:
    leaves = [x.detach().requires_grad_() for x in (weights, maps)]
    out = ops.propagate_labels(leaves[0], indices, leaves[1], frames)
    return out.detach(), *torch.autograd.grad(out.square().sum(), leaves)


def sequence(backend: str) -> Callable[..., Inputs]:
    return lambda *inputs: (ops.propagate_sequence(*inputs, rescale=True, backend=backend),)


def attended(query: Tensor, key: Tensor, value: Tensor, indices: Tensor) -> Inputs:
    leaves = [x.detach().requires_grad_() for x in (query, key, value)]
    out, lse = ops.attention(*leaves, temperature=8.0, shifts=[0, 1, 10], backend="triton")
    edges = ops.softmax_at(*leaves[:2], lse, indices, temperature=8.0, backend="triton")
    found = torch.autograd.grad(out.square().sum() + edges.square().sum(), leaves)
    return out.detach(), lse.detach(), edges.detach(), *found


def places() -> Tensor:
    return torch.randint(-1, 257, (3, 100, 4), generator=torch.Generator().manual_seed(4))


half, single = torch.bfloat16, torch.float32
CASES: dict[str, tuple[Callable[..., Inputs], Inputs]] = {
    "triton, a list a frame": (selected("triton"), features(half)),
    "triton, one list, float32": (selected("triton", joint=True), features(single)),
    "triton, ties": (selected("triton", ties=True), features(half)),
    "triton, gradients": (gradients, features(half)),
    "labels": (labels, video(5, 3, 300, 5, 3, 4)),
    "attention": (
        attended,
        (*(normal(i, 3, n, 64).to(half) for i, n in ((1, 100), (2, 257))), normal(3, 3, 3, 257, 32).to(half), places()),
    ),
}
if CUDA_MISSING is None:
    CASES["cuda, a list a frame"] = selected("cuda"), features(half)
    CASES["cuda, one list"] = selected("cuda", joint=True), features(half)
    CASES["cuda, a video"] = sequence("cuda"), video(5, 12, 300, 5, 3, 4)


@pytest.fixture(autouse=True)
def poisoned():
    """Fill uninitialized memory with NaN, so that results of an earlier run are not found there."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)


@needs_gpu
@pytest.mark.parametrize("name", CASES)
def test_on_another_stream(name):
    """While the default stream is busy: work that waits for it, or runs on it, would end later."""
    run, inputs = CASES[name]
    inputs = tuple(x.cuda() for x in inputs)
    expected = [x.cpu() for x in run(*inputs)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        run(*inputs)  # the first call may synchronize with the GPU to load and allocate
    torch.cuda.synchronize()
    torch.cuda._sleep(CYCLES)
    busy = torch.cuda.current_stream().record_event()
    with torch.cuda.stream(side):
        found = [x.cpu() for x in run(*inputs)]
    assert not busy.query(), "the operator waited for the default stream"
    torch.cuda.synchronize()
    assert all(torch.equal(ours, same) for ours, same in zip(found, expected, strict=True))


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="there are not two GPUs")
@pytest.mark.parametrize("name", CASES)
def test_on_a_device_that_is_not_the_current_one(name):
    run, inputs = CASES[name]
    found = []
    for current in (1, 0):
        with torch.cuda.device(current):
            outputs = run(*(x.to("cuda:1") for x in inputs))
        assert all(x.device == torch.device("cuda:1") for x in outputs)
        found.append([x.cpu() for x in outputs])
    assert all(torch.equal(ours, same) for ours, same in zip(*found, strict=True))
