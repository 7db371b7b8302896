"""propagate_sequence: one contract for every backend, against the definition frame by frame in float64."""

import pytest
import torch

from tests.conftest import on_threads
from tests.sequence_cases import DEVICE, VIDEOS, by_hand, through_a_video, video
from timecycle.errors import InputError
from timecycle.ops import propagate_sequence
from timecycle.ops.backends import CUDA_MISSING, NATIVE_MISSING

BACKENDS = ["reference"]
BACKENDS += ["cpu"] if NATIVE_MISSING is None and DEVICE == "cpu" else []
BACKENDS += ["cuda"] if CUDA_MISSING is None else []


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rescale", [False, True], ids=["as they are", "rescaled"])
@pytest.mark.parametrize(("b", "n", "k", "t", "classes", "ring"), VIDEOS)
def test_a_video_equals_frame_by_frame_propagation(backend, rescale, b, n, k, t, classes, ring):
    through_a_video(b, n, k, t, classes, ring, rescale, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_targets_without_neighbors_are_zero(backend):
    weights, indices, labels, frames, targets = (x.to(DEVICE) for x in video(3, 4, 40, 3, 2, 5))
    # No targets; no neighbors; and only missing neighbors, so that classes are constant.
    none = propagate_sequence(weights[:0], indices[:0], labels, frames[:0], targets[:0], backend=backend)
    assert torch.equal(none, labels)
    for empty in (weights[:, :, :0], weights):
        nowhere = torch.full_like(indices[:, :, : empty.shape[2]], -1)
        out = propagate_sequence(empty, nowhere, labels, frames, targets, rescale=True, backend=backend)
        assert torch.equal(out[1:], torch.zeros_like(out[1:]))
        assert torch.equal(out[0], labels[0])
    assert propagate_sequence(weights, indices, labels[:, :, :0], frames, targets, backend=backend).shape == (5, 40, 0)


@pytest.mark.parametrize("backend", BACKENDS)
def test_strides_and_negative_sums(backend):
    weights, indices, labels, frames, targets = (x.to(DEVICE) for x in video(4, 5, 50, 4, 3, 6))
    turned = [x.transpose(0, 1).contiguous().transpose(0, 1) for x in (-weights, indices, labels, frames)]
    ours = propagate_sequence(*turned, targets, rescale=True, backend=backend)
    plain = propagate_sequence(-weights, indices, labels, frames, targets, rescale=True, backend="reference")
    torch.testing.assert_close(ours, plain, atol=1e-4, rtol=1e-4)
    assert float(ours[1:].min()) == 0
    assert float(ours[1:].max()) == 1


@pytest.mark.skipif("cpu" not in BACKENDS, reason="the compiled kernels are not here, or tensors are on a GPU")
@pytest.mark.parametrize("rescale", [False, True], ids=["as they are", "rescaled"])
def test_results_are_bitwise_equal_with_any_number_of_threads(rescale):
    inputs = video(7, 12, 700, 5, 3, 4)
    found = on_threads((1, 2, 5), lambda: propagate_sequence(*inputs, rescale=rescale, backend="cpu"))
    assert all(torch.equal(found[0], other) for other in found[1:])


def test_float64_is_left_to_the_reference():
    inputs = [x.double() if x.is_floating_point() else x for x in video(5, 4, 20, 3, 2, 3)]
    torch.testing.assert_close(propagate_sequence(*inputs), by_hand(*inputs, False))
    with pytest.raises(InputError, match="cannot run propagate_sequence here"):
        propagate_sequence(*inputs, backend="cpu")


def test_opcheck():
    inputs = video(6, 3, 10, 2, 2, 3)
    torch.library.opcheck(torch.ops.timecycle.propagate_sequence.default, (*inputs, True, ""))


@pytest.mark.parametrize(
    ("name", "change", "sentence"),
    [
        ("weights", lambda x: x[0], r"weights has shape \[10, 2\] and indices \[3, 10, 2\]; expected \[B, N, K\]"),
        ("indices", lambda x: x.int(), "indices is torch.int32; expected int64"),
        ("indices", lambda x: x + 20, "indices runs from .* expected -1 to 19, 2 slots of 10 positions"),
        ("labels", lambda x: x[:, :9], "labels has 9 positions; expected 10, as many as queries"),
        ("labels", lambda x: x.half(), r"labels is torch.float16 \[4, 10, 3\]; expected torch.float32 \[G, M, L\]"),
        ("frames", lambda x: x + 9, "frames holds .* expected label maps, -1 to 3"),
        ("targets", lambda x: x[:2], r"targets is torch.int64 \[2\]; expected int64 \[3\]"),
        ("targets", lambda x: x + 1, "targets holds .* expected label maps, 0 to 3"),
        ("targets", lambda x: x * 0, "target 0 becomes label map 0, which is in its context; expected another"),
        ("labels", lambda x: x.to("meta"), "labels is on meta; expected cpu, where the weights are"),
    ],
)
def test_bad_arguments_are_named(name, change, sentence):
    inputs = dict(zip(("weights", "indices", "labels", "frames", "targets"), video(6, 3, 10, 2, 2, 3), strict=True))
    inputs["frames"][0, 0] = 0
    inputs[name] = change(inputs[name])
    with pytest.raises(InputError, match=sentence):
        propagate_sequence(**inputs)
