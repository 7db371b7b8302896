"""Calls without checks do not synchronize with the GPU, and can be captured in a CUDA graph. Skipped without a GPU.

tests/test_stops.py counts synchronizations on a CPU, on tensors that pretend to be on a GPU.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest
import torch
from torch import Tensor

from tests.contract import normal
from tests.sequence_cases import video
from timecycle import ops
from timecycle.errors import InputError
from timecycle.ops.backends import CUDA_MISSING
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import PRESETS

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no GPU")

NEIGHBORHOOD = ops.Neighborhood(9, 11, 3)
SELECT = ops.Select(4, 2.0, "frame", "all")
Case = tuple[Callable[..., Tensor | tuple[Tensor, ...]], list[Tensor]]


def on_gpu(*inputs: Tensor) -> list[Tensor]:
    return [x.cuda() for x in inputs]


def features(seed: int) -> list[Tensor]:
    """Queries, a bank, frames and label maps; frames also depend on the seed."""
    frames = torch.tensor([[0, 2, -1], [1, 1, 2]]).roll(seed, 1)
    query, bank, labels = normal(seed, 2, 99, 64), normal(seed + 1, 3, 99, 64), normal(seed + 2, 3, 99, 5)
    return on_gpu(query.bfloat16(), bank.bfloat16(), frames, labels.float())


def selected(backend: str, neighborhood: ops.Neighborhood | None) -> Callable[[int], Case]:
    def run(query: Tensor, bank: Tensor, frames: Tensor) -> tuple[Tensor, ...]:
        return ops.topk_affinity(query, bank, frames, SELECT, neighborhood=neighborhood, backend=backend, check=False)

    return lambda seed: (run, features(seed)[:3])


def propagated(backend: str, neighborhood: ops.Neighborhood | None) -> Callable[[int], Case]:
    def run(query: Tensor, bank: Tensor, frames: Tensor, labels: Tensor) -> Tensor:
        options = {"neighborhood": neighborhood, "backend": backend, "check": False}
        return ops.affinity_propagate(query, bank, frames, labels, frames, SELECT, **options)

    return lambda seed: (run, features(seed))


def summed_labels(seed: int) -> Case:
    def run(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor) -> Tensor:
        return ops.propagate_labels(weights, indices, labels, frames, check=False)

    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, 3 * 99, (2, 99, 4), generator=generator)
    _, _, frames, labels = features(seed)
    return run, [*on_gpu(torch.rand(2, 99, 4, generator=generator), indices), labels, frames]


def sequence(seed: int) -> Case:
    def run(*inputs: Tensor) -> Tensor:
        return ops.propagate_sequence(*inputs, rescale=True, backend="cuda", check=False)

    return run, on_gpu(*video(seed, 4, 99, 3, 2, 5))


def edges(seed: int) -> Case:
    def run(query: Tensor, key: Tensor, lse: Tensor, indices: Tensor) -> Tensor:
        return ops.softmax_at(query, key, lse, indices, temperature=8.0, backend="triton", check=False)

    query, bank, *_ = features(seed)
    generator = torch.Generator().manual_seed(seed)
    indices = torch.randint(-1, 99, (2, 99, 4), generator=generator)
    return run, [query, bank[:2], *on_gpu(4 + torch.rand(2, 99, generator=generator), indices)]


def attended(seed: int) -> Case:
    def run(query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, ...]:
        options = {"shifts": (0, 3, 11), "dropped": ops.EdgeDropout(0.1, 1), "backend": "triton"}
        return ops.attention(query, key, value, temperature=8.0, **options)

    query, bank, *_ = features(seed)
    return run, [query, bank[:2], *on_gpu(normal(seed + 3, 3, 99, 32).bfloat16())]


CASES: dict[str, Callable[[int], Case]] = {"labels": summed_labels, "edges": edges, "attention": attended}
for backend in ("triton", *["cuda"] * (CUDA_MISSING is None)):
    for neighborhood in (None, NEIGHBORHOOD):
        where = f"{backend}, {'everywhere' if neighborhood is None else 'neighborhood'}"
        CASES[f"neighbors by {where}"] = selected(backend, neighborhood)
        CASES[f"propagated by {where}"] = propagated(backend, neighborhood)
if CUDA_MISSING is None:
    CASES["a video"] = sequence


@contextmanager
def no_stops() -> Iterator[None]:
    """Raise where PyTorch synchronizes with the GPU."""
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@contextmanager
def stops(number: int) -> Iterator[None]:
    """Check how often PyTorch synchronizes with the GPU."""
    torch.cuda.synchronize()
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        torch.cuda.set_sync_debug_mode("warn")
        try:
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")
    assert sum("called a synchronizing" in str(warning.message) for warning in seen) == number


def tuple_of(found: Tensor | tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (found,) if isinstance(found, Tensor) else found


@pytest.mark.parametrize("name", CASES)
def test_a_call_without_checks_does_not_synchronize(name):
    run, inputs = CASES[name](1)
    expected = tuple_of(run(*inputs))  # compiles, and fills caches
    with no_stops():
        found = tuple_of(run(*inputs))
    assert all(map(torch.equal, found, expected))


@pytest.mark.parametrize("counted", [True, False], ids=["counted before", "counted in the graph"])
@pytest.mark.parametrize("name", CASES)
def test_a_captured_call_follows_its_inputs(name, counted, monkeypatch):
    run, inputs = CASES[name](1)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        run(*inputs)  # compiles, and fills caches
    torch.cuda.current_stream().wait_stream(side)
    if not counted:  # kernels/work.py
        monkeypatch.setattr("timecycle.kernels.work._COUNTED", {})
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = tuple_of(run(*inputs))
    for seed in (5, 9):
        _, others = CASES[name](seed)
        for place, other in zip(inputs, others, strict=True):
            place.copy_(other)
        for out in captured:
            out.fill_(7)  # stays if the replay does nothing
        graph.replay()
        expected = tuple_of(run(*others))
        assert all(map(torch.equal, captured, expected))


def test_the_debug_mode_detects_synchronization():
    query, bank, frames, _ = features(1)
    ops.topk_affinity(query, bank, frames, SELECT)
    with no_stops(), pytest.raises(RuntimeError, match="synchroni"):
        ops.topk_affinity(query, bank, frames, SELECT)


@pytest.mark.parametrize("name", PRESETS)
def test_a_propagator_does_not_synchronize_between_frames(name):
    generator = torch.Generator().manual_seed(0)
    frames, labels = (torch.rand(s, generator=generator).cuda() for s in ((8, 16, 9, 11), (2, 9, 11)))
    overrides = {"length": 3} | ({} if PRESETS[name].radius is None else {"radius": 4})
    found = []
    for _ in range(2):  # the first time compiles
        propagator = LabelPropagator(name, **overrides)
        propagator.start(frames[0], labels)
        found.append([propagator.step(frame) for frame in frames[1:]])
        propagator.check()
    propagator = LabelPropagator(name, **overrides)
    propagator.start(frames[0], labels)
    # The number of tied keys, which is known on the GPU, is the size of an output.
    with stops(len(frames) - 1) if PRESETS[name].ties == "all" else no_stops():
        found.append([propagator.step(frame) for frame in frames[1:]])
    propagator.check()
    assert all(map(torch.equal, found[2], found[0]))


def test_a_frame_that_is_not_finite_is_refused_by_check():
    frames = torch.rand(5, 16, 9, 11).cuda()
    frames[3, 2, 4, 5] = torch.nan
    propagator = LabelPropagator("crw", length=3)
    propagator.start(frames[0], torch.rand(2, 9, 11).cuda())
    soft = [propagator.step(frame) for frame in frames[1:]]
    assert [bool(x.isnan().all()) for x in soft] == [False, False, True, True]
    with pytest.raises(InputError, match="features of frame 3 hold a value that is not finite"):
        propagator.check()


@pytest.mark.parametrize("backend", ["triton", *["cuda"] * (CUDA_MISSING is None)])
@pytest.mark.parametrize("neighborhood", [None, NEIGHBORHOOD], ids=["everywhere", "neighborhood"])
def test_a_frame_outside_the_bank_is_an_empty_slot(backend, neighborhood):
    query, bank, _, labels = features(1)
    beyond = torch.tensor([[0, 3, 2], [-5, 1 << 40, 1]], device="cuda")
    empty = torch.tensor([[0, -1, 2], [-1, -1, 1]], device="cuda")
    options = {"neighborhood": neighborhood, "backend": backend}
    ours = ops.topk_affinity(query, bank, beyond, SELECT, check=False, **options)
    assert all(map(torch.equal, ours, ops.topk_affinity(query, bank, empty, SELECT, **options)))
    ours = ops.affinity_propagate(query, bank, beyond, labels, beyond, SELECT, check=False, **options)
    assert torch.equal(ours, ops.affinity_propagate(query, bank, empty, labels, empty, SELECT, **options))
