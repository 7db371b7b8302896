"""propagate_sequence: one contract for every backend, against the definition frame by frame in float64."""

import pytest
import torch
from torch import Tensor

from tests.kernel_cases import DEVICE
from timecycle.errors import InputError
from timecycle.ops import propagate_labels, propagate_sequence
from timecycle.ops._backends import CUDA_MISSING, NATIVE_MISSING

BACKENDS = ["reference"]
BACKENDS += ["cpu"] if NATIVE_MISSING is None and DEVICE == "cpu" else []
BACKENDS += ["cuda"] if CUDA_MISSING is None else []


def video(seed: int, b: int, n: int, k: int, t: int, classes: int, ring: int | None = None) -> tuple[Tensor, ...]:
    """A video of b targets after an annotated frame: weights, indices, labels, frames, targets, on the CPU.

    Maps are one a frame, or a ring of so many beside the annotated one.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = torch.rand(b, n, k, generator=generator) - 0.25
    indices = torch.randint(-1, t * n, (b, n, k), generator=generator)
    targets = 1 + torch.arange(b) % (ring or max(b, 1))
    labels = torch.rand(1 + (ring or b), n, classes, generator=generator)
    frames = torch.zeros(b, t, dtype=torch.int64)
    for i in range(b):
        earlier = torch.tensor([0, -1, *(m for m in targets[:i].unique().tolist() if m != targets[i])])
        frames[i] = earlier[torch.randint(0, len(earlier), (t,), generator=generator)]
    return weights, indices, labels, frames, targets


def by_hand(weights, indices, labels, frames, targets, rescale):
    labels = labels.double().clone()
    for b, target in enumerate(targets.tolist()):
        out = propagate_labels(weights[b : b + 1].double(), indices[b : b + 1], labels, frames[b : b + 1])[0]
        if rescale:
            for channel in out.T:
                least, largest = channel.min(), channel.max()
                channel.copy_((channel - least) / (largest - least) if largest > least else torch.zeros(()))
        labels[target] = out
    return labels


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("rescale", [False, True], ids=["as they are", "rescaled"])
@pytest.mark.parametrize(
    ("b", "n", "k", "t", "classes", "ring"),
    [(1, 1, 1, 1, 1, None), (7, 65, 5, 3, 4, None), (12, 33, 10, 4, 1, 3), (3, 63, 1, 1, 70, 2), (20, 130, 3, 2, 2, 5)],
)
def test_a_video_is_as_frame_by_frame(backend, rescale, b, n, k, t, classes, ring):
    inputs = video(b + n, b, n, k, t, classes, ring)
    expected = by_hand(*inputs, rescale)
    before = inputs[2].clone()
    ours = propagate_sequence(*(x.to(DEVICE) for x in inputs), rescale=rescale, backend=backend)
    assert ours.dtype == torch.float32
    assert torch.equal(inputs[2], before)
    # What is divided by a small range carries the rounding of the sums.
    torch.testing.assert_close(ours.cpu().double(), expected, atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_is_left_of_what_was_not_written(backend):
    weights, indices, labels, frames, targets = (x.to(DEVICE) for x in video(3, 4, 40, 3, 2, 5))
    # No target, no neighbours, and neighbours that all do not exist, whose classes are constant.
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


def test_float64_is_left_to_the_reference():
    inputs = [x.double() if x.is_floating_point() else x for x in video(5, 4, 20, 3, 2, 3)]
    torch.testing.assert_close(propagate_sequence(*inputs), by_hand(*inputs, False))
    with pytest.raises(InputError, match="cannot run propagate_sequence here"):
        propagate_sequence(*inputs, backend="cpu")


def test_is_well_behaved():
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
def test_bad_input_gets_one_sentence(name, change, sentence):
    inputs = dict(zip(("weights", "indices", "labels", "frames", "targets"), video(6, 3, 10, 2, 2, 3), strict=True))
    inputs["frames"][0, 0] = 0
    inputs[name] = change(inputs[name])
    with pytest.raises(InputError, match=sentence):
        propagate_sequence(**inputs)
