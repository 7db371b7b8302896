"""Untrained descriptors, alone and concatenated with a network's features; saving and reading networks."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.training_runs import assert_same
from timecycle.checkpoints.networks import load_features, save_encoder
from timecycle.errors import InputError
from timecycle.features.named import Features
from timecycle.models.descriptors import ColorDescriptor, GradientDescriptor
from timecycle.models.encoder import Encoder, Trunk
from timecycle.propagation.frames import preprocess
from timecycle.propagation.protocols import protocol


def frame(seed: int = 0) -> torch.Tensor:
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return preprocess(np.kron(small, np.ones((8, 8, 1), np.uint8)), protocol("timecycle", side=48))


def test_features_are_unit_vectors_of_thirteen_on_the_stride_8_grid():
    descriptor = ColorDescriptor()
    descriptor.begin(frame())
    features = descriptor(torch.stack([frame(), frame(1)]))
    assert features.shape == (2, 13, 6, 6)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(2, 6, 6))


def test_positions_match_their_own_color():
    descriptor = ColorDescriptor()
    descriptor.begin(frame())
    features = descriptor(frame()[None])[0].flatten(1)
    shifted = descriptor(torch.roll(frame(), 8, dims=2)[None])[0].roll(-1, dims=2).flatten(1)
    best = (features.T @ shifted).argmax(dim=1).view(6, 6)
    # The border columns wrap around and see other neighbors through the blur.
    assert torch.equal(best[:, 1:-2], torch.arange(36).view(6, 6)[:, 1:-2])


def test_a_frame_of_one_color_gives_finite_features():
    descriptor = ColorDescriptor()
    flat = torch.zeros(3, 16, 16)
    descriptor.begin(flat)
    assert torch.isfinite(descriptor(flat[None])).all()


def test_statistics_of_the_first_frame_are_required():
    with pytest.raises(RuntimeError, match="begin"):
        ColorDescriptor()(frame()[None])


@pytest.mark.parametrize("name", ["dino", "dift"])
def test_colors_are_the_same_however_a_protocol_normalizes_them(name):
    rgb = np.random.default_rng(1).integers(0, 255, (20, 27, 3)).astype(np.uint8)  # 8 divides neither side
    found = []
    for rules in (protocol("crw"), protocol(name, resize="native")):
        image = preprocess(rgb, rules)
        descriptor = ColorDescriptor(rules.mean, rules.std)
        descriptor.begin(image)
        found.append(descriptor(image[None]))
    assert found[0].shape == (1, 13, 3, 4)
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


def stripes(angle: float) -> torch.Tensor:
    """An image whose lightness rises and falls along a direction, degrees from the x axis towards y: [3, 48, 64]."""
    y, x = np.mgrid[:48, :64]
    along = x * np.cos(np.deg2rad(angle)) + y * np.sin(np.deg2rad(angle))
    gray = np.rint(127 + 100 * np.sin(along / 5)).astype(np.uint8)
    return preprocess(gray[:, :, None].repeat(3, 2), protocol("crw"))


def test_gradients_are_unit_vectors_that_tell_directions():
    """Of 8 directions 45 degrees apart, stripes have that of their normal and the opposite, in each of 4 cells."""
    for turned in range(4):
        features = GradientDescriptor()(stripes(45.0 * turned)[None])
        assert features.shape == (1, 32, 6, 8)
        torch.testing.assert_close(features.norm(dim=1), torch.ones(1, 6, 8))
        by_direction = features[0].unflatten(0, (4, 8)).mean(dim=(0, 2, 3))
        assert set(by_direction.topk(2).indices.tolist()) == {turned, turned + 4}


def test_gradients_between_two_directions_are_shared_among_them():
    by_direction = GradientDescriptor()(stripes(22.5)[None])[0].unflatten(0, (4, 8)).mean(dim=(0, 2, 3))
    assert set(by_direction.topk(4).indices.tolist()) == {0, 1, 4, 5}


def test_gradients_of_a_flat_frame_and_of_odd_sizes_are_finite():
    features = GradientDescriptor()(torch.zeros(2, 3, 20, 27))
    assert features.shape == (2, 32, 3, 4)
    torch.testing.assert_close(features, torch.full_like(features, 32**-0.5))


def features_of(*parts: str, checkpoint: Path | None = None, name: str = "crw") -> Features:
    rules = protocol(name)
    return Features(parts, torch.device("cpu"), torch.float32, rules.mean, rules.std, checkpoint)


def test_a_dot_product_of_joined_features_is_the_mean_of_the_parts():
    first, second = frame()[None], frame(1)[None]
    products = []
    for parts in (("network",), ("color",), ("gradients",), ("network", "color", "gradients")):
        extract = features_of(*parts)
        extract.begin(frame())
        assert extract.l2 == (parts != ("network",))
        one, other = (torch.nn.functional.normalize(extract(images), dim=1) for images in (first, second))
        products.append((one * other).sum(dim=1))
    torch.testing.assert_close(products[3], (products[0] + products[1] + products[2]) / 3)


def test_the_shipped_network_sees_the_same_however_a_protocol_normalizes():
    rgb = np.random.default_rng(1).integers(0, 255, (24, 32, 3)).astype(np.uint8)
    found = []
    for name in ("crw", "dift"):
        rules = protocol(name, resize="native")
        extract = Features(("network",), torch.device("cpu"), torch.float32, rules.mean, rules.std)
        found.append(extract(preprocess(rgb, rules)[None]))
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("parts", [(), ("color", "colour"), ("color", "shape")])
def test_parts_that_are_unknown_or_twice_there_are_refused(parts):
    with pytest.raises(InputError, match="expected some of network, color, gradients, each once"):
        features_of(*parts)


def test_timecycles_encoder_is_saved_in_its_own_layout(tmp_path):
    encoder = Encoder().eval()
    save_encoder(encoder, tmp_path / "encoder.safetensors", {})
    read = load_features(tmp_path / "encoder.safetensors")
    assert isinstance(read, Encoder)
    assert not read.training
    assert_same(read.state_dict(), encoder.state_dict())


def test_a_trunk_of_no_objective_is_not_saved(tmp_path):
    with pytest.raises(InputError, match="no walk's"):
        save_encoder(Trunk(18, 3, "zeros"), tmp_path / "other.safetensors", {})
