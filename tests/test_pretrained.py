"""load_pretrained: training from checkpoints of this program and of the release, with any wrapper prefixes."""

import pytest
import torch

from tests.test_state_dicts import trunk, under
from timecycle import load_features
from timecycle.checkpoints.networks import load_pretrained
from timecycle.errors import InputError
from timecycle.models.encoder import Encoder
from timecycle.models.timecycle import TimeCycle
from timecycle.models.walk import CropWalk


@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_training_starts_from_wrapped_weights(prefix, tmp_path):
    path, learned = tmp_path / "weights.pth", CropWalk(trunk(4, "reflect", 8))
    torch.save({"checkpoint": {"model": under(prefix, learned.state_dict())}}, path)
    model = CropWalk(trunk(5, "reflect", 8))
    assert load_pretrained(model, path) == "all weights"
    assert all(torch.equal(value, learned.state_dict()[name]) for name, value in model.state_dict().items())


def test_training_starts_from_the_named_part(tmp_path):
    path, learned = tmp_path / "weights.pth", CropWalk(trunk(4, "reflect", 8))
    average = {name: value + 1 for name, value in learned.state_dict().items()}
    torch.save({"model": learned.state_dict(), "model_ema": average}, path)
    model = CropWalk(trunk(5, "reflect", 8))
    with pytest.raises(InputError, match="2 networks: model, model_ema"):
        load_pretrained(model, path)
    load_pretrained(model, path, "model_ema")
    assert all(torch.equal(value, average[name]) for name, value in model.state_dict().items())


def test_training_starts_from_a_checkpoint_of_version_0_1(tmp_path):
    """With the older name of the localizer."""
    path, learned, model = tmp_path / "weights.pth", TimeCycle(64, 56).state_dict(), TimeCycle(64, 56)
    torch.save({"model": {name.replace("localizer.", "localiser."): value for name, value in learned.items()}}, path)
    assert load_pretrained(model, path) == "all weights"
    assert all(torch.equal(value, learned[name]) for name, value in model.state_dict().items())
    path.unlink()


RELEASED = {
    "encoder.trunk.": "encoderVideo.",
    "encoder.head.": "afterconv1.",
    "localizer.taps": "afterconv3_trans.weight",
    "localizer.conv2.": "afterconv4_trans.",
    "localizer.linear.": "linear2.",
}


def test_training_starts_from_the_release_wrapped_twice(tmp_path):
    torch.manual_seed(0)
    path, learned, model = tmp_path / "weights.pth", TimeCycle(64, 56).state_dict(), TimeCycle(64, 56)
    state = {
        released + name.removeprefix(ours): value
        for name, value in learned.items()
        for ours, released in RELEASED.items()
        if name.startswith(ours)
    }
    torch.save({"model": {"state_dict": under("_orig_mod.module.", state)}}, path)
    assert load_pretrained(model, path) == "all weights of the release"
    assert all(torch.equal(value, learned[name]) for name, value in model.state_dict().items())
    assert isinstance(load_features(path), Encoder)
    path.unlink()
