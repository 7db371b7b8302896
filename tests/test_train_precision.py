"""Memory formats, autocast, compilation and activation checkpointing give the results of the plain trunk."""

import functools
import itertools

import pytest
import torch

from tests.tiny_training import CYCLE, WALK
from tests.training_runs import latest, log
from timecycle.models.encoder import Trunk
from timecycle.training import objectives
from timecycle.training.distributed import Distributed
from timecycle.training.settings import RunSettings

SAME = ("--lr", "1e-4", "--optim", "sgd", "--schedule", "constant", "--no-channels-last")


BOUNDS = {
    "--channels-last": (1e-5, 1e-4),
    "--checkpoint-activations": (1e-6, 1e-5),
    # A cycle's gradient passes the trunk's bfloat16 output up to five times; in an untrained network half of its
    # direction is rounding noise, with the published order of operations too.
    "--autocast": (0.02, 0.5),
    "--compile": (1e-5, 1e-4),
}
"""By option, how far losses and norms of gradients may differ."""
OBJECTIVES = {"walk": WALK, "timecycle": CYCLE}
CASES = [*itertools.product(OBJECTIVES, BOUNDS)]
CASES[-1] = pytest.param(*CASES[-1], marks=pytest.mark.nightly)  # compiling TimeCycle takes as long as all others


@pytest.mark.parametrize(("objective", "option"), CASES)
def test_options_change_rounding_alone(tiny, monkeypatch, objective, option):
    """Losses and gradients of two steps, and batch statistics, each batch counted once."""
    close, norm = BOUNDS[option]
    calls: list[object] = []
    wrapped = objectives.checkpoint
    monkeypatch.setattr(objectives, "checkpoint", lambda *a, **k: calls.append(a[0]) or wrapped(*a, **k))
    if option == "--compile":  # inductor takes minutes: see test_train_nightly.py
        compiled = functools.partial(torch.compile, backend="eager")
        monkeypatch.setattr(torch, "compile", lambda forward: calls.append(forward) or compiled(forward))
    options = (*OBJECTIVES[objective], *SAME, "--steps", 2)
    assert tiny(*options, "-c", "plain").code == 0
    done = tiny(*options, option, "-c", "fast")
    assert done.code == 0, done.err
    for ours, theirs in zip(log("fast"), log("plain"), strict=True):
        assert ours["loss"] == pytest.approx(theirs["loss"], rel=close, abs=close)
        assert ours["gradient"] == pytest.approx(theirs["gradient"], rel=norm)
    found, expected = latest("fast")["model"], latest("plain")["model"]
    statistics = [name for name in expected if name.endswith(("running_mean", "running_var", "batches_tracked"))]
    for name in statistics:
        torch.testing.assert_close(found[name], expected[name], atol=2 * close, rtol=2 * close, msg=name)
    assert any(int(expected[name]) for name in statistics if name.endswith("tracked"))
    # The option took effect.
    kernel = found[next(name for name in found if name.endswith("layer1.0.conv1.weight"))]
    effective = {
        "--channels-last": kernel.is_contiguous(memory_format=torch.channels_last),
        "--checkpoint-activations": len(calls) > 1,
        "--autocast": abs(log("fast")[0]["loss"] - log("plain")[0]["loss"]) > 1e-6,
        "--compile": len(calls) == 1,
    }
    assert effective[option]
    assert kernel.dtype == torch.float32


@pytest.mark.parametrize("innermost", [False, True])
def test_images_are_converted_to_the_memory_format(innermost):
    model = torch.nn.Sequential(Trunk(18, width=4))
    channels_last: list[bool] = []
    model[0].conv1.register_forward_hook(lambda module, given, found: channels_last.append(given[0].stride(1) == 1))
    prepared = objectives.prepare_model(
        model, RunSettings(channels_last=innermost), Distributed(0, 1, torch.device("cpu"))
    )
    images = torch.randn(2, 3, 32, 32)
    for given in (images, images.contiguous(memory_format=torch.channels_last)):
        prepared(given)
    assert channels_last == [innermost, innermost]
