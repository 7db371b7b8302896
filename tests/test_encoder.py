"""The encoder: shapes, folding, and the recorded features of the original."""

from pathlib import Path

import numpy as np
import pytest
import torch

from tests.resnets import features as written_out
from tests.resnets import random_weights
from timecycle.checkpoint import load_encoder
from timecycle.encoder import Encoder, Trunk, fold_batch_norm
from timecycle.errors import InputError
from timecycle.files import read_rgb
from timecycle.images import prepared
from timecycle.protocols import protocol


@pytest.mark.parametrize(("sequence", "crop", "index"), [("dog", 320, 10), ("blackswan", 320, 0), ("dog", 480, 11)])
@torch.inference_mode()
def test_features_equal_the_originals(oracle: Path, oracle_checkpoint: Path, shared: Path, sequence, crop, index):
    recorded = np.load(oracle / f"infer_{sequence}_{crop}.npz")
    stride = int(recorded["feat_stride"])
    rgb = read_rgb(shared / "davis" / "JPEGImages" / "480p" / sequence / f"{index:05d}.jpg")
    encoder = load_encoder(oracle_checkpoint)
    for network in (encoder, fold_batch_norm(encoder)):
        features = network(prepared(rgb, protocol("timecycle", side=crop))[None])[0, :, ::stride, ::stride].numpy()
        # The record itself is rounded to float16, which takes most of the 1e-4.
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
def test_a_trunk_computes_the_resnet_written_out(depth, stages, channels, padding):
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


@pytest.mark.parametrize("wrong", [{"depth": 34}, {"stages": 5}, {"padding": "circular"}])
def test_a_trunk_that_does_not_exist_is_refused(wrong):
    with pytest.raises(InputError, match=str(next(iter(wrong.values())))):
        Trunk(**wrong)
