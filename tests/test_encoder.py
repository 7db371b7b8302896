"""The encoder: shapes, folding, and the recorded features of the original."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode

from tests.resnets import features as written_out
from tests.resnets import random_weights
from timecycle.checkpoints.networks import load_encoder
from timecycle.data.images import read_rgb
from timecycle.errors import InputError
from timecycle.models.encoder import Encoder, Trunk, fold_batch_norm
from timecycle.propagation.frames import preprocess
from timecycle.propagation.protocols import protocol


@pytest.mark.parametrize(("sequence", "crop", "index"), [("dog", 320, 10), ("blackswan", 320, 0), ("dog", 480, 11)])
@torch.inference_mode()
def test_features_equal_the_originals(oracle: Path, oracle_checkpoint: Path, shared: Path, sequence, crop, index):
    recorded = np.load(oracle / f"infer_{sequence}_{crop}.npz")
    stride = int(recorded["feat_stride"])
    rgb = read_rgb(shared / "davis" / "JPEGImages" / "480p" / sequence / f"{index:05d}.jpg")
    encoder = load_encoder(oracle_checkpoint)
    for network in (encoder, fold_batch_norm(encoder)):
        features = network(preprocess(rgb, protocol("timecycle", side=crop))[None])[0, :, ::stride, ::stride].numpy()
        # The record is rounded to float16, which is most of the 1e-4.
        np.testing.assert_allclose(features, recorded[f"feat_{index}"].astype(np.float32), atol=1e-4, rtol=0)


@torch.inference_mode()
def test_folding_batch_norm_changes_rounding_only(release_checkpoint: Path):
    encoder = load_encoder(release_checkpoint).double()
    images = torch.randn(2, 3, 40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    folded = fold_batch_norm(encoder)
    assert not any(isinstance(module, torch.nn.BatchNorm2d) for module in folded.modules())
    torch.testing.assert_close(folded(images), encoder(images), atol=1e-12, rtol=0)


@torch.inference_mode()
def test_features_are_unit_vectors_at_stride_8():
    features = Encoder().eval()(torch.randn(1, 3, 64, 80))
    assert features.shape == (1, 512, 8, 10)
    torch.testing.assert_close(features.norm(dim=1), torch.ones(1, 8, 10))
    assert features.min() >= 0


@pytest.mark.parametrize("padding", ["zeros", "reflect"])
@pytest.mark.parametrize(("depth", "stages", "channels"), [(18, 3, 256), (18, 4, 512), (50, 3, 1024), (50, 4, 2048)])
@torch.inference_mode()
def test_a_trunk_equals_the_resnet_written_out(depth, stages, channels, padding):
    trunk = Trunk(depth, stages, padding).double().eval()
    weights = {name: value.double() for name, value in random_weights(depth).items()}
    trunk.load_state_dict({name: weights[name] for name in trunk.state_dict()})
    images = torch.randn(1, 3, 45, 58, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    mode = "constant" if padding == "zeros" else padding
    expected = written_out(weights, images, (1, 2, 1, 1)[:stages], mode)
    assert expected.shape == (1, trunk.channels, 6, 8)
    assert trunk.channels == channels
    for network in (trunk, fold_batch_norm(trunk)):
        torch.testing.assert_close(network(images), expected, atol=1e-10 * expected.max().item(), rtol=0)


class Convolutions(TorchDispatchMode):
    """Record the input channels, kernel size and stride of each convolution."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        if operator is torch.ops.aten.convolution.default:
            self.seen.append((args[1].shape[1], args[1].shape[-1], args[3][0]))
        return operator(*args, **(kwargs or {}))


@pytest.mark.parametrize("side", [8, 15, 16])
@pytest.mark.parametrize(("depth", "width", "channels"), [(18, 4, 4), (18, 7, 7), (18, 15, 15), (50, 3, 12)])
def test_a_strided_shortcut_of_few_channels(depth, width, channels, side):
    """In channels_last its gradients are right; it avoids oneDNN's strided convolution, which corrupts the heap."""
    torch.manual_seed(0)
    shortcut = Trunk(depth, width=width).layer2[0].downsample[0]
    weight = shortcut.weight.detach().double().requires_grad_()
    images = torch.randn(8, channels, side, side, dtype=torch.float64, requires_grad=True)
    expected = functional.conv2d(images, weight, stride=2)
    gradient = torch.randn_like(expected)
    expected.backward(gradient)
    shortcut.to(memory_format=torch.channels_last)
    innermost = images.detach().float().contiguous(memory_format=torch.channels_last).requires_grad_()
    with Convolutions() as convolutions:
        found = shortcut(innermost)
    assert convolutions.seen == [(channels, 1, 1)]
    found.backward(gradient.float())
    torch.testing.assert_close(found.double(), expected, atol=1e-5, rtol=1e-5)
    for ours, exact in ((shortcut.weight.grad, weight.grad), (innermost.grad, images.grad)):
        assert (ours.double() - exact).norm() < 1e-5 * exact.norm()


def test_a_narrow_trunk_folds():
    trunk = Trunk(18, width=4).double().eval()
    images = torch.randn(1, 3, 40, 48, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(fold_batch_norm(trunk)(images), trunk(images), atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("wrong", [{"depth": 34}, {"stages": 5}, {"padding": "circular"}])
def test_a_trunk_that_does_not_exist_is_refused(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        Trunk(**wrong)
