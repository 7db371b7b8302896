"""What a run is made of, by its settings: clips, dataset, model, encoder, optimizer, schedule, validation."""

import hashlib
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LambdaLR

from timecycle.checkpoints.networks import encoder_bytes, load_features
from timecycle.checkpoints.state_dicts import State, choose, read_checkpoint, unwrapped
from timecycle.data.clips import Clip, listed_clips, synthetic_clips, video_clips
from timecycle.data.datasets import ClipDataset, TimeCycleDataset
from timecycle.data.davis import read_davis
from timecycle.data.synthetic import make_davis
from timecycle.data.walk_datasets import CropWalkDataset, GridWalkDataset
from timecycle.errors import InputError
from timecycle.evaluation.davis.evaluate import evaluate_davis
from timecycle.models.encoder import Encoder, Trunk
from timecycle.models.timecycle import TimeCycle, current_names
from timecycle.models.walk import CropWalk, GridWalk
from timecycle.training.distributed import Distributed
from timecycle.training.settings import CropWalkSettings, GridWalkSettings, RunSettings, TimeCycleSettings, WalkSettings
from timecycle.viewing.training import visualize_timecycle, visualize_walk

SYNTHETIC_FRAMES = 32  # of a synthetic clip
ADAM_BETA2 = 0.999
VALIDATION_SET = Path("data/synthetic-validation")
VALIDATION_SEED = 1_000_007  # far from any clip's
VALIDATION_SIDE = 240
MIN_FRAMES = 3  # of a validation sequence; the first and the last are not scored


@dataclass(frozen=True)
class Objective:
    """An entry of `OBJECTIVES`; each function takes the objective's settings.

    The model is called with a batch's tensors by name, and returns losses with `total` and `scalars()`.
    """

    model: Callable[[Any], nn.Module]
    dataset: Callable[[Any, list[Clip]], ClipDataset]
    encoder: Callable[[Any], nn.Module]
    """The model's submodule of that name, new: images [B, 3, H, W] -> features [B, D, H / 8, W / 8]."""
    visualize: Callable[[nn.Module, dict[str, Any], Any], np.ndarray]
    """(encoder, batch, losses) -> image of the batch's first sample, RGB uint8 [H, W, 3]."""


def _timecycle_model(settings: TimeCycleSettings) -> nn.Module:
    return TimeCycle(settings.frame_side, settings.patch_side, settings.lamda)


def _timecycle_dataset(settings: TimeCycleSettings, clips: list[Clip]) -> ClipDataset:
    return TimeCycleDataset(
        clips,
        settings.seed,
        frame_side=settings.frame_side,
        patch_side=settings.patch_side,
        length=settings.video_length,
        frame_gap=settings.frame_gap,
        pred_distance=settings.pred_distance,
        original=settings.original_sampling,
    )


def _walk_encoder(settings: WalkSettings) -> Trunk:
    return Trunk(18, padding="reflect", width=settings.width)


def _walk_model(settings: WalkSettings) -> nn.Module:
    kind = CropWalk if isinstance(settings, CropWalkSettings) else GridWalk
    return kind(_walk_encoder(settings), temperature=settings.temperature, edge_dropout=settings.edge_dropout)


def _crop_walk_dataset(settings: CropWalkSettings, clips: list[Clip]) -> ClipDataset:
    return CropWalkDataset(clips, settings.seed, settings.crop_side, settings.video_length, settings.max_frame_gap)


def _grid_walk_dataset(settings: GridWalkSettings, clips: list[Clip]) -> ClipDataset:
    sides = settings.frame_side, settings.cell_side
    return GridWalkDataset(clips, settings.seed, *sides, settings.video_length, settings.max_frame_gap)


OBJECTIVES: dict[type[RunSettings], Objective] = {
    TimeCycleSettings: Objective(_timecycle_model, _timecycle_dataset, lambda settings: Encoder(), visualize_timecycle),
    CropWalkSettings: Objective(_walk_model, _crop_walk_dataset, _walk_encoder, visualize_walk),
    GridWalkSettings: Objective(_walk_model, _grid_walk_dataset, _walk_encoder, visualize_walk),
}


def choose_clips(settings: RunSettings) -> list[Clip]:
    """The clips that the settings name. Raises InputError if there are none."""
    if settings.filelist:
        return listed_clips(settings.filelist)
    if settings.videos:
        return video_clips(settings.videos, settings.cache_mb * 1_000_000)
    return synthetic_clips(settings.synthetic_clips, SYNTHETIC_FRAMES, settings.seed)


def clips_digest(clips: list[Clip]) -> str:
    """SHA-256 of the clips' names, in order. Opens none of them."""
    return hashlib.sha256("\n".join(clip.name for clip in clips).encode()).hexdigest()


def make_optimizer(settings: RunSettings, model: nn.Module) -> optim.Optimizer:
    """Adam, AdamW or SGD over all parameters."""
    if settings.optimizer == "sgd":
        return optim.SGD(model.parameters(), settings.lr, settings.momentum, weight_decay=settings.weight_decay)
    kind = optim.Adam if settings.optimizer == "adam" else optim.AdamW
    betas = (settings.beta1, ADAM_BETA2)
    return kind(model.parameters(), settings.lr, betas, weight_decay=settings.weight_decay)


def make_schedule(settings: RunSettings, optimizer: optim.Optimizer, length: int) -> LambdaLR:
    """The learning rate over `length` steps: rising over the warm-up, then constant or half a cosine down to 0."""

    def factor(step: int) -> float:
        if step < settings.warmup:
            return (step + 1) / settings.warmup
        if settings.schedule == "constant":
            return 1.0
        done = (step - settings.warmup) / max(1, length - settings.warmup)
        return 0.5 * (1 + math.cos(math.pi * min(1.0, done)))

    return LambdaLR(optimizer, factor)


def load_pretrained(model: nn.Module, path: Path, part: str | None = None) -> str:
    """Load a model's weights from a file: a run's checkpoint or encoder, the release's, or a published encoder.

    part: which, of a file that holds several, as `timecycle.load_features` takes it.
    Returns what was loaded, in words. Raises InputError if the file holds none of these, several, or of another size.
    """
    states = read_checkpoint(path).states
    encoder = model.get_submodule("encoder")
    for whole, what in ((model, "all weights"), (encoder, "the encoder's weights")):
        plain = {
            place: current_names({unwrapped(name): value for name, value in state.items()})
            for place, state in states.items()
        }
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
    """The release's tensors under its own names, without prefix; empty if there are none."""
    ends = "afterconv3_trans.weight"
    prefix = next((name.removesuffix(ends) for name in state if name.endswith(ends)), None)
    if prefix is None:
        return {}
    return {unwrapped(name.removeprefix(prefix)): value for name, value in state.items() if name.startswith(prefix)}


def export_encoder(settings: RunSettings, model: nn.Module) -> nn.Module:
    """A copy of the model's encoder without changes made for training, in evaluation mode, on its device."""
    learned = model.get_submodule("encoder")
    with torch.random.fork_rng(devices=[]):  # building it draws random weights
        encoder = OBJECTIVES[type(settings)].encoder(settings)
    encoder.load_state_dict(learned.state_dict())
    return encoder.to(next(learned.parameters()).device).eval()


def encoder_safetensors(settings: RunSettings, model: nn.Module, steps: int) -> bytes:
    """The encoder as safetensors, for `test_davis.py --resume`."""
    notes = {"objective": settings.objective, "steps": str(steps)}
    return encoder_bytes(export_encoder(settings, model), notes)  # type: ignore[arg-type]  # one of both, by the objective


def validation_set(settings: RunSettings, distributed: Distributed) -> Path:
    """The folder in DAVIS layout to validate on; synthetic video is rendered if it is not there.

    Raises InputError if it is not in that layout, or has a sequence that cannot be scored.
    """
    if settings.evaluate_on:
        for sequence in read_davis(settings.evaluate_on, "val"):  # so that an error comes before any training
            if not sequence.scored or len(sequence.frames) < MIN_FRAMES:
                raise InputError(
                    f"--evaluate-on {settings.evaluate_on}: {sequence.name} has {len(sequence.frames)} frames and "
                    f"{len(sequence.annotations)} annotations; expected {MIN_FRAMES} or more, as many of both"
                )
        return settings.evaluate_on
    if distributed.is_rank_zero:
        make_davis(VALIDATION_SET, frames=20, height=240, width=426, seed=VALIDATION_SEED)
    distributed.barrier()
    return VALIDATION_SET


def validate(encoder: nn.Module, folder: Path) -> float:
    """J&F in [0, 1] of an encoder under TimeCycle's protocol at 240 pixels; all processes share the work."""
    scores = evaluate_davis(encoder, folder, "timecycle", side=VALIDATION_SIDE, progress=False)
    return float(scores.global_["J&F-Mean"])
