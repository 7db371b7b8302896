"""Features other than plain tensors, and contexts longer than the video."""

import numpy as np
import pytest
import torch

from tests.test_protocols import direct, features_and_mask
from timecycle.ops import affinity_propagate
from timecycle.propagation import propagator as propagation
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import PRESETS, protocol
from timecycle.propagation.video import propagate

FORMS = {
    "requires grad": lambda x: x.clone().requires_grad_(),
    "of a graph": lambda x: x.clone().requires_grad_() * 1,
    "NumPy": lambda x: x.numpy(),
    "NumPy, the other byte order": lambda x: x.numpy().astype(">f4"),
    "NumPy, negative strides": lambda x: x.numpy()[:, ::-1][:, ::-1],
    "list": list,
    "tuple of NumPy": lambda x: tuple(x.numpy()),
    "list of batches of one": lambda x: [frame[None].requires_grad_() for frame in x],
    "float64": lambda x: x.double().numpy(),
    "channels last": lambda x: x.repeat_interleave(60, dim=1).permute(0, 2, 3, 1),
}


# Every form and every preset occur; reading does not depend on the preset.
FORMS_AND_PRESETS = [
    (list(FORMS)[i % len(FORMS)], list(PRESETS)[i % len(PRESETS)]) for i in range(max(len(FORMS), len(PRESETS)))
]


@pytest.mark.parametrize(("form", "name"), FORMS_AND_PRESETS)
def test_features_in_other_forms_give_the_same_labels(name, form):
    features, mask = features_and_mask()
    expected = propagate(features if form != "channels last" else features.repeat_interleave(60, dim=1), mask, name)
    found = propagate(FORMS[form](features), mask, name)
    assert not found.soft.requires_grad
    exact = form not in ("float64", "channels last")
    torch.testing.assert_close(found.soft, expected.soft, atol=0 if exact else 1e-4, rtol=0)
    if exact:
        np.testing.assert_array_equal(found.masks, expected.masks)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_numpy_features_give_the_labels_of_tensors(dtype):
    features, mask = features_and_mask()
    expected = propagate(features.to(getattr(torch, dtype)), mask, "dino")
    found = propagate(features.numpy().astype(dtype), mask, "dino")
    assert torch.equal(found.soft, expected.soft)


def test_tokens_are_reshaped_by_the_working_size():
    features = torch.rand(3, 6, 6, 7, generator=torch.Generator().manual_seed(0))
    mask = np.zeros((96, 112), np.uint8)
    mask[20:60, 30:80] = 1
    tokens = torch.cat([torch.full((3, 1, 6), 9.0), features.flatten(2).transpose(1, 2)], dim=1)
    found = propagate(tokens, mask, "dino", working_size=(96, 112))
    expected = propagate(features, mask, "dino", working_size=(96, 112))
    torch.testing.assert_close(found.soft, expected.soft, atol=1e-5, rtol=0)


@pytest.mark.parametrize("name", ["timecycle", "crw", "dino"])
def test_the_propagator_takes_arrays_and_features_with_gradient(name):
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(4, 6, 4, 5, generator=generator), torch.rand(2, 4, 5, generator=generator)

    def propagated(features, labels):
        propagator = LabelPropagator(name)
        return torch.stack(
            [propagator.start(features[0], labels), *(propagator.step(feature) for feature in features[1:])]
        )

    expected = propagated(features, labels)
    for found in (
        propagated(features.numpy(), labels.numpy()),
        propagated(features.clone().requires_grad_(), labels.clone().requires_grad_()),
    ):
        assert torch.equal(found, expected)
        assert not found.requires_grad


@pytest.mark.parametrize("name", PRESETS)
def test_a_context_beyond_the_video_takes_no_more_slots_or_memory(name, monkeypatch):
    slots = []

    def noted(query, bank, frames, *rest, **options):
        slots.append(frames.shape[1])
        return affinity_propagate(query, bank, frames, *rest, **options)

    monkeypatch.setattr(propagation, "affinity_propagate", noted)
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(5, 6, 4, 5, generator=generator), torch.rand(2, 4, 5, generator=generator)
    propagator = LabelPropagator(name, length=1_000_000)
    soft = [propagator.start(features[0], labels), *(propagator.step(feature) for feature in features[1:])]
    assert max(slots) <= len(features)
    assert propagator._bank.shape[1] <= 32
    if PRESETS[name].first in ("once", "twice"):
        rules = protocol(name, length=1_000_000)
        torch.testing.assert_close(torch.stack(soft), direct(features, labels, rules), atol=1e-5, rtol=1e-5)
    else:  # the copies of frame 0 outweigh all other frames
        limit = LabelPropagator(name, length=1)
        limit.start(features[0], labels)
        if PRESETS[name].first == "padded":
            torch.testing.assert_close(soft[4], limit.step(features[4]), atol=1e-4, rtol=0)
        else:
            crowded = LabelPropagator(name, length=200)  # more copies than are kept
            crowded.start(features[0], labels)
            assert torch.equal([crowded.step(feature) for feature in features[1:]][-1], soft[4])


@pytest.mark.parametrize("name", ["timecycle", "crw", "uvc"])
def test_memory_of_a_long_context_grows_with_the_video_and_changes_nothing(name):
    generator = torch.Generator().manual_seed(0)
    features, labels = torch.rand(80, 5, 3, 4, generator=generator), torch.rand(2, 3, 4, generator=generator)
    found = []
    for frames in (None, 80):
        propagator = LabelPropagator(name, length=70, k=2)
        found.append([propagator.start(features[0], labels, frames), *(propagator.step(f) for f in features[1:])])
    assert all(map(torch.equal, *found))
