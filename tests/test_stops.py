"""GPU synchronizations of the operators: none in a call without checks, one in a call with checks.

Counted on tensors that pretend to be on a GPU (tests/stand_in.py); tests/test_gpu_stops.py counts on a GPU.
"""

import itertools
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial
from unittest import mock

import pytest
import torch
from torch import Tensor

from tests.assertions import raises_input_error
from tests.contract import normal
from tests.sequence_cases import video
from tests.stand_in import OnGpu, StandIn, stand_in
from timecycle import ops
from timecycle.errors import InputError
from timecycle.evaluation.davis import masks as davis_masks
from timecycle.evaluation.davis.evaluate import evaluate_davis
from timecycle.ops.backends import INTERPRETED
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import PRESETS

pytest.importorskip("triton", reason="Triton is not installed")
from timecycle.kernels import work

pytestmark = pytest.mark.skipif(INTERPRETED, reason="launches of interpreted kernels are not replaced")


@pytest.fixture
def gpu() -> Iterator[StandIn]:
    with stand_in() as there:
        yield there


def half(*inputs: Tensor) -> list[Tensor]:
    return [OnGpu(x.bfloat16()) for x in inputs]


FEATURES = normal(1, 2, 20, 16), normal(2, 3, 20, 16)
FRAMES = torch.tensor([[0, 2, -1], [1, 1, 2]])
LABELS = normal(3, 3, 20, 5).float()
MULTIPLICITY = torch.tensor([[1, 0], [2, 1], [0, 0]])
INDICES = torch.tensor([-1, 0, 59]).expand(2, 20, 3)
ONE = ops.Select(1, 1.0)


def call_topk_affinity(neighborhood: ops.Neighborhood | None, multiplicity: bool, **options: object) -> None:
    options |= {"neighborhood": neighborhood, "multiplicity": OnGpu(MULTIPLICITY) if multiplicity else None}
    ops.topk_affinity(*half(*FEATURES), OnGpu(FRAMES), ops.Select(3, 0.5, "frame", "all"), **options)


def call_affinity_propagate(neighborhood: ops.Neighborhood | None, multiplicity: bool, **options: object) -> None:
    options |= {"neighborhood": neighborhood, "multiplicity": OnGpu(MULTIPLICITY) if multiplicity else None}
    frames = OnGpu(FRAMES)
    ops.affinity_propagate(*half(*FEATURES), frames, OnGpu(LABELS), frames, ops.Select(3, 0.5), **options)


def call_propagate_labels(check: bool) -> None:
    ops.propagate_labels(OnGpu(torch.rand(2, 20, 3)), OnGpu(INDICES), OnGpu(LABELS), OnGpu(FRAMES), check=check)


def call_propagate_sequence(check: bool) -> None:
    ops.propagate_sequence(*map(OnGpu, video(1, 4, 20, 3, 2, 5)), rescale=True, backend="cuda", check=check)


def call_softmax_at(check: bool) -> None:
    query, key = half(*(x[:2] for x in FEATURES))
    indices = OnGpu(INDICES.clamp(max=19))
    ops.softmax_at(query, key, OnGpu(torch.rand(2, 20)), indices, temperature=2.0, backend="triton", check=check)


CALLS: list[Callable[..., None]] = [call_propagate_labels, call_propagate_sequence, call_softmax_at]
CALLS += [
    partial(call, neighborhood, multiplicity, backend=backend)
    for call in (call_topk_affinity, call_affinity_propagate)
    for backend in ("triton", "cuda")
    for neighborhood in (None, ops.Neighborhood(4, 5, 2))
    for multiplicity in (False, True)
]


@pytest.mark.parametrize("call", CALLS)
def test_a_call_synchronizes_once_and_without_checks_never(gpu, call):
    call(check=False)
    assert gpu.stops == []
    call(check=True)
    assert len(gpu.stops) == 1


def test_tensors_of_a_cuda_graph_are_not_cached_for_other_calls(gpu):
    with mock.patch("torch.cuda.is_current_stream_capturing", return_value=True):
        call_topk_affinity(ops.Neighborhood(2, 10, 3), False, backend="cuda", check=False)
    assert work._COUNTED == {}
    call_topk_affinity(ops.Neighborhood(2, 10, 3), False, backend="cuda", check=False)
    assert len(work._COUNTED) == 1


def test_attention_synchronizes_never_after_its_first_call(gpu):
    query, key, value = half(*(x[:2] for x in FEATURES), normal(4, 2, 20, 5))
    options = {"temperature": 2.0, "shifts": (0, 3), "dropped": ops.EdgeDropout(0.1, 1), "backend": "triton"}
    ops.attention(query, key, value, **options)  # copies the shifts, once
    gpu.stops.clear()
    ops.attention(query, key, value, **options)
    assert gpu.stops == []


@pytest.mark.parametrize(
    ("read", "stops"),
    [
        (lambda x: int(x.max()), 1),
        (lambda x: bool((x > 1).any()), 1),
        (lambda x: x.tolist(), 6),
        (lambda x: x.nonzero(), 1),
        (lambda x: x[x > 1], 1),
        (lambda x: torch.equal(x, x), 1),
        (lambda x: x.cpu(), 1),
        (lambda x: torch.tensor([1], device=x.device), 1),
        (lambda x: torch.tensor([1]).to(x), 1),
        (lambda x: x[0].copy_(torch.arange(3)), 1),
        (lambda x: (x.new_ones(2), torch.arange(2, device=x.device), x.where(x > 2, -1), x[0].fill_(2)), 0),
    ],
)
def test_the_stand_in_counts_every_way_to_read(gpu, read, stops):
    read(OnGpu(torch.arange(6).view(2, 3)))
    assert len(gpu.stops) == stops


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (lambda: ops.topk_affinity(*half(*FEATURES), OnGpu(FRAMES + 1), ONE), "frames holds .* -1 to 2"),
        (
            lambda: ops.topk_affinity(*half(*FEATURES), OnGpu(FRAMES), ONE, multiplicity=OnGpu(MULTIPLICITY - 1)),
            "multiplicity holds -1; expected counts of zero or more",
        ),
        (
            lambda: ops.topk_affinity(*half(FEATURES[0], FEATURES[1] / 0), OnGpu(FRAMES), ONE),
            r"bank holds -?inf at \[0, 0, 0\]; expected finite features",
        ),
        (
            lambda: ops.affinity_propagate(*half(*FEATURES), OnGpu(FRAMES), OnGpu(LABELS), OnGpu(FRAMES + 1), ONE),
            "label_frames holds .* expected label maps, -1 to 2",
        ),
    ],
)
def test_a_checked_call_refuses_bad_values(gpu, call, sentence):
    with pytest.raises(InputError, match=sentence):
        call()


QUERY, BANK, BEYOND = *(x.float() for x in FEATURES), torch.full_like(FRAMES, 3)


@pytest.mark.parametrize(
    ("call", "sentence"),
    [
        (partial(ops.topk_affinity, QUERY, BANK, BEYOND, ONE), "frames holds"),
        (partial(ops.topk_affinity, QUERY, BANK, FRAMES, ONE, multiplicity=MULTIPLICITY - 1), "multiplicity holds"),
        (partial(ops.affinity_propagate, QUERY, BANK, FRAMES, LABELS, BEYOND, ONE), "label_frames holds"),
        (partial(ops.propagate_labels, LABELS[:2, :, :3], INDICES + 1, LABELS, FRAMES), "indices runs"),
    ],
)
def test_on_a_cpu_bounds_are_always_checked(call, sentence):
    with raises_input_error(sentence):
        call(check=False)


def features(frames: int) -> Tensor:
    return torch.rand(frames, 6, 4, 5, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", PRESETS)
def test_a_propagator_synchronizes_once_a_sequence(gpu, name):
    propagator = LabelPropagator(name, length=3)
    frames = [OnGpu(x) for x in features(8)]
    propagator.start(frames[0], OnGpu(torch.rand(2, 4, 5)))
    assert len(gpu.stops) == 1
    gpu.stops.clear()
    for frame in frames[1:]:
        propagator.step(frame)
    # The number of tied keys, which is known on the GPU, is the size of an output.
    assert len(gpu.stops) == (len(frames) - 1 if PRESETS[name].ties == "all" else 0)
    gpu.stops.clear()
    propagator.check()
    assert len(gpu.stops) == 1


def test_a_frame_that_is_not_finite_is_named_by_check(gpu):
    propagator = LabelPropagator("crw", length=3)
    given = features(6)
    given[2, 1, 2, 3] = torch.inf
    given[4, 0, 0, 0] = torch.nan
    frames = [OnGpu(x) for x in given]
    labels = OnGpu(torch.rand(2, 4, 5))
    propagator.start(frames[0], labels)
    for i, frame in enumerate(frames[1:], start=1):
        soft = propagator.step(frame)
        assert soft.inner.isnan().all() or i < 2
    for refused in (propagator.check, propagator.state_dict):
        with pytest.raises(InputError, match="features of frame 2 hold a value that is not finite"):
            refused()
    with pytest.raises(InputError, match="features holds inf"):
        propagator.start(frames[2], labels)
    propagator.start(frames[0], labels)
    propagator.check()


@pytest.mark.parametrize("spoiled", [None, 2])
def test_the_evaluator_synchronizes_once_a_mask_and_once_at_the_end(gpu, small_davis, tmp_path, spoiled, monkeypatch):
    # Without inference mode, in which views of a stand-in are plain tensors.
    monkeypatch.setattr(davis_masks, "_write_sequence", davis_masks._write_sequence.__wrapped__)
    seen = []

    def extract(images: Tensor) -> OnGpu:
        found = torch.nn.functional.avg_pool2d(images, 8)
        found[0, 0, 0, 0] += torch.nan if len(seen) == spoiled else 0.0
        seen.append(gpu.stops.copy())
        return OnGpu(found)

    with pytest.raises(InputError, match="features of frame 2 hold") if spoiled else nullcontext():
        evaluate_davis(
            extract, small_davis, "crw", side=64, sequences=["first"], save_path=tmp_path / "out", progress=False
        )
    # Between two frames only the frame's labels are waited for, by the thread that writes them.
    between = [later[len(earlier) :] for earlier, later in itertools.pairwise(seen[1:])]
    assert between
    assert all(stops == ["_to_copy between the CPU and the GPU"] for stops in between)
    assert (tmp_path / "out" / "first" / "00002.png").exists() == (spoiled is None)
