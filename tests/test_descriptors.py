"""The colour descriptor."""

import numpy as np
import pytest
import torch

from timecycle.colour import ColourDescriptor
from timecycle.images import prepared
from timecycle.protocols import protocol


def frame(seed: int = 0) -> torch.Tensor:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return prepared(np.kron(small, np.ones((8, 8, 1), np.uint8)), protocol("timecycle", side=48))


def test_features_are_unit_vectors_of_thirteen_on_the_stride_8_grid():
    descriptor = ColourDescriptor()
    descriptor.begin(frame())
    features = descriptor(torch.stack([frame(), frame(1)]))
    assert features.shape == (2, 13, 6, 6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 6, 6))


def test_places_are_most_similar_to_their_own_colour():
    descriptor = ColourDescriptor()
    descriptor.begin(frame())
    features = descriptor(frame()[None])[0].flatten(1)
    shifted = descriptor(torch.roll(frame(), 8, dims=2)[None])[0].roll(-1, dims=2).flatten(1)
    best = (features.T @ shifted).argmax(dim=1).view(6, 6)
    # The border columns wrap around and see other neighbours through the blur.
    assert torch.equal(best[:, 1:-2], torch.arange(36).view(6, 6)[:, 1:-2])


def test_a_frame_of_one_colour_gives_finite_features():
    descriptor = ColourDescriptor()
    flat = torch.zeros(3, 16, 16)
    descriptor.begin(flat)
    assert torch.isfinite(descriptor(flat[None])).all()


def test_statistics_of_the_first_frame_are_required():
    with pytest.raises(RuntimeError, match="begin"):
        ColourDescriptor()(frame()[None])


@pytest.mark.parametrize("name", ["dino", "dift"])
def test_colours_are_the_same_however_a_protocol_normalises_them(name):
    rgb = np.random.default_rng(1).integers(0, 255, (20, 27, 3)).astype(np.uint8)  # 8 divides neither side
    found = []
    for rules in (protocol("crw"), protocol(name, resize="native")):
        image = prepared(rgb, rules)
        descriptor = ColourDescriptor(rules.mean, rules.std)
        descriptor.begin(image)
        found.append(descriptor(image[None]))
    assert found[0].shape == (1, 13, 3, 4)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)
