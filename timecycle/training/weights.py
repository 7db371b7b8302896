"""Weights in and out of a run: what it starts from, the encoder alone during it, and what it leaves."""

from pathlib import Path

import torch
from torch import nn

from timecycle.checkpoints.networks import encoder_bytes, load_features
from timecycle.checkpoints.state_dicts import State, choose, read_checkpoint, unwrapped
from timecycle.errors import InputError
from timecycle.models.timecycle import TimeCycle
from timecycle.training.objectives import OBJECTIVES
from timecycle.training.settings import Settings


def load_pretrained(model: nn.Module, path: Path, part: str | None = None) -> str:
    """Start from the weights of a file: a run's checkpoint or encoder, the release's, or a published encoder.

    part: which, of a file that holds several, as `timecycle.load_features` takes it.
    Returns what was taken, in words. Raises InputError if the file holds none of these, several, or of another size.
    """
    states = read_checkpoint(path).states
    encoder = model.get_submodule("encoder")
    for whole, what in ((model, "all weights"), (encoder, "the encoder's weights")):
        plain = {place: {unwrapped(name): value for name, value in state.items()} for place, state in states.items()}
        if fitting := {place: state for place, state in plain.items() if set(state) == set(whole.state_dict())}:
            try:
                whole.load_state_dict(choose(fitting, part, path))
            except RuntimeError:
                raise InputError(f"{path} holds a model of other sizes; expected one of these settings") from None
            return what
    releases = {place: release for place, state in states.items() if (release := _release(state))}
    if releases and isinstance(model, TimeCycle):
        model.load_release(choose(releases, part, path))
        return "all weights of the release"
    found, expected = load_features(path, part=part).state_dict(), encoder.state_dict()
    for name, value in expected.items():
        if name not in found or found[name].shape != value.shape:
            raise InputError(f"{path} does not fit the encoder: {name} is missing or of another shape")
    encoder.load_state_dict({name: found[name] for name in expected})
    return "the encoder's weights"


def _release(state: State) -> State:
    """The release's tensors under its own names, whatever stands before them; empty if there are none."""
    ends = "afterconv3_trans.weight"
    prefix = next((name.removesuffix(ends) for name in state if name.endswith(ends)), None)
    if prefix is None:
        return {}
    return {unwrapped(name.removeprefix(prefix)): value for name, value in state.items() if name.startswith(prefix)}


def plain_encoder(settings: Settings, model: nn.Module) -> nn.Module:
    """A copy of the model's encoder for use outside of training: as it is built, in evaluation mode, on its device."""
    learned = model.get_submodule("encoder")
    with torch.random.fork_rng(devices=[]):  # initial weights are drawn, and replaced
        encoder = OBJECTIVES[settings.objective].encoder(settings)
    encoder.load_state_dict(learned.state_dict())
    return encoder.to(next(learned.parameters()).device).eval()


def encoder_file(settings: Settings, model: nn.Module, steps: int) -> bytes:
    """The encoder as safetensors, for `test_davis.py --resume`."""
    notes = {"objective": settings.objective, "steps": str(steps)}
    return encoder_bytes(plain_encoder(settings, model), notes)  # type: ignore[arg-type]  # one of both, by the objective
