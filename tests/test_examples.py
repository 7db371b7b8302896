"""The example extractors, with a small vision transformer in place of a downloaded one."""

import sys
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import timecycle
from tests.resnets import features, random_weights
from timecycle import examples
from timecycle.errors import InputError


class Small(nn.Module):
    """The interface of a timm model that the examples use: a class token, then patch tokens."""

    num_prefix_tokens = 1

    def __init__(self, patch: int) -> None:
        super().__init__()
        self.patch_embed = SimpleNamespace(patch_size=(patch, patch))
        self.project = nn.Conv2d(3, 12, patch, patch)

    def forward_features(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, 1 + h * w, 12], padded as dynamic_img_pad does."""
        patch = self.patch_embed.patch_size[0]
        pad = (0, -images.shape[3] % patch, 0, -images.shape[2] % patch)
        tokens = self.project(nn.functional.pad(images, pad)).flatten(2).transpose(1, 2)
        return torch.cat([torch.full_like(tokens[:, :1], 99.0), tokens], dim=1)


@pytest.fixture
def requested(monkeypatch):
    """Replace timm by one that makes the small model; gives the arguments of its calls."""
    found = []

    def create_model(name, **options):
        found.append((name, options))
        torch.manual_seed(0)
        return Small(4)

    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=create_model))
    return found


def test_patch_tokens_lie_where_their_patches_are(requested):
    extract = examples.PatchTokens("some_vit", img_size=64)
    images = torch.rand(2, 3, 10, 12)
    found = extract(images)
    assert found.shape == (2, 12, 3, 3)
    torch.manual_seed(0)
    project = Small(4).project
    torch.testing.assert_close(found[:, :, 1, 2], project(images[:, :, 4:8, 8:12])[:, :, 0, 0])
    assert not (found == 99).any()
    extract(images)
    assert [name for name, _ in requested] == ["some_vit"]  # made once
    assert requested[0][1] == {
        "pretrained": True,
        "num_classes": 0,
        "dynamic_img_size": True,
        "dynamic_img_pad": True,
        "img_size": 64,
    }


def test_examples_evaluate_davis(requested, small_davis):
    scores = timecycle.evaluate_davis(examples.PatchTokens("some_vit"), small_davis, "dino", progress=False, side=64)
    assert scores.global_["J-Mean"] > 0.5


def test_patches_of_14_pixels_at_a_side_that_they_divide(monkeypatch, small_davis):
    monkeypatch.setitem(sys.modules, "timm", SimpleNamespace(create_model=lambda *_, **options: Small(14)))
    images = []
    extract = examples.PatchTokens("some_vit")

    def noted(image: Tensor) -> Tensor:
        images.append((tuple(image.shape[2:]), tuple(extract(image).shape[2:])))
        return extract(image)

    scores = timecycle.evaluate_davis(noted, small_davis, "dino", progress=False, side=154, multiple=14)
    assert set(images) == {((154, 196), (11, 14))}
    assert scores.global_["J-Mean"] > 0.5


@pytest.mark.parametrize(("depth", "channels"), [(18, 256), (50, 1024)])
def test_torchvision_s_weights_are_those_of_the_trunk(depth, channels, monkeypatch):
    weights, asked = random_weights(depth), []

    def get_weight(name):
        asked.append(name)
        return SimpleNamespace(get_state_dict=lambda: weights)

    monkeypatch.setitem(sys.modules, "torchvision", SimpleNamespace())
    monkeypatch.setitem(sys.modules, "torchvision.models", SimpleNamespace(get_weight=get_weight))
    extract = examples.TorchvisionResNet(depth, "IMAGENET1K_V1")
    images = torch.randn(1, 3, 24, 33, generator=torch.Generator().manual_seed(0))
    found = [extract(images), extract(images)]
    assert asked == [f"ResNet{depth}_Weights.IMAGENET1K_V1"]
    expected = features(weights, images, (1, 2, 1))
    assert expected.shape == (1, channels, 3, 5)
    for features_found in found:  # of one network, read once
        torch.testing.assert_close(features_found, expected, atol=1e-4 * float(expected.max()), rtol=0)


def test_without_the_library_one_sentence_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(InputError, match=r"timm is not installed; this example needs it \(pip install timm\)"):
        examples.PatchTokens("some_vit")(torch.rand(1, 3, 8, 8))


def test_tokens_that_are_not_a_grid_are_refused(requested, monkeypatch):
    monkeypatch.setattr(Small, "num_prefix_tokens", 0)
    with pytest.raises(InputError, match="some_vit gives 10 patch tokens; expected 3 x 3"):
        examples.PatchTokens("some_vit")(torch.rand(1, 3, 10, 12))
