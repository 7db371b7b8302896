"""Weights in and out of a run: what it starts from, the encoder alone during it, and what it leaves."""

from pathlib import Path

import torch
from torch import nn

from timecycle.checkpoint import load_features, read_state_dict, save_encoder
from timecycle.errors import InputError
from timecycle.objective import TimeCycle
from timecycle.training.objectives import OBJECTIVES
from timecycle.training.settings import Settings


def load_pretrained(model: nn.Module, path: Path) -> str:
    """Start from the weights of a file: a run's checkpoint or encoder, the release's, or a published encoder.

    Returns what was taken, in words. Raises InputError if the file holds none of these, or of another size.
    """
    state = read_state_dict(path)
    encoder = model.get_submodule("encoder")
    for part, what in ((model, "all weights"), (encoder, "the encoder's weights")):
        if set(state) == set(part.state_dict()):
            try:
                part.load_state_dict(state)
            except RuntimeError:
                raise InputError(f"{path} holds a model of other sizes; expected one of these settings") from None
            return what
    if any(name.endswith("afterconv3_trans.weight") for name in state) and isinstance(model, TimeCycle):
        model.load_release(state)
        return "all weights of the release"
    found, expected = load_features(path).state_dict(), encoder.state_dict()
    for name, value in expected.items():
        if name not in found or found[name].shape != value.shape:
            raise InputError(f"{path} does not fit the encoder: {name} is missing or of another shape")
    encoder.load_state_dict({name: found[name] for name in expected})
    return "the encoder's weights"


def plain_encoder(settings: Settings, model: nn.Module) -> nn.Module:
    """A copy of the model's encoder for use outside of training: as it is built, in evaluation mode, on its device."""
    learned = model.get_submodule("encoder")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        encoder = OBJECTIVES[settings.objective].encoder(settings)
    encoder.load_state_dict(learned.state_dict())
    return encoder.to(next(learned.parameters()).device).eval()


def write_encoder(path: Path, settings: Settings, model: nn.Module, steps: int) -> None:
    """Write the encoder as safetensors, for `test_davis.py --resume`, atomically."""
    notes = {"objective": settings.objective, "steps": str(steps)}
    save_encoder(plain_encoder(settings, model), path, notes)  # type: ignore[arg-type]  # one of both, by the objective
