"""What can be learned: for each objective its model, its samples, its encoder alone, and a picture of a sample."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from torch import nn

from timecycle.data.clips import Clip, listed_clips, synthetic_clips, video_clips
from timecycle.data.crops import CropSamples, GridSamples
from timecycle.data.samples import CycleSamples, Samples
from timecycle.models.encoder import Encoder, Trunk
from timecycle.models.timecycle import TimeCycle
from timecycle.models.walk import CropWalk, GridWalk
from timecycle.training.pictures import picture_cycles, picture_walk
from timecycle.training.settings import Settings

MADE_FRAMES = 32  # of a made clip


@dataclass(frozen=True)
class Objective:
    """An entry of `OBJECTIVES`.

    The model is called with a batch's tensors by name, and returns losses with `total` and `scalars()`.
    """

    model: Callable[[Settings], nn.Module]
    samples: Callable[[Settings, list[Clip]], Samples]
    encoder: Callable[[Settings], nn.Module]
    """The model's submodule of that name, new: images [B, 3, H, W] -> features [B, D, H / 8, W / 8]."""
    picture: Callable[[nn.Module, dict[str, Any], Any], np.ndarray]
    """(encoder, batch, losses) -> RGB uint8 [H, W, 3] of the batch's first sample."""


def _cycle_model(settings: Settings) -> nn.Module:
    return TimeCycle(settings.side, settings.patch, settings.lamda)


def _cycle_samples(settings: Settings, clips: list[Clip]) -> Samples:
    return CycleSamples(
        clips,
        settings.seed,
        side=settings.side,
        patch=settings.patch,
        length=settings.video_length,
        frame_gap=settings.frame_gap,
        pred_distance=settings.pred_distance,
        original=settings.original_sampling,
    )


def _trunk(settings: Settings) -> Trunk:
    return Trunk(18, padding="reflect", width=settings.width)


def _walk_model(settings: Settings) -> nn.Module:
    form = CropWalk if settings.walk_over == "crops" else GridWalk
    return form(_trunk(settings), temperature=settings.temperature, edge_dropout=settings.edge_dropout)


def _walk_samples(settings: Settings, clips: list[Clip]) -> Samples:
    seed, side, length, gap = settings.seed, settings.side, settings.video_length, settings.frame_gap
    if settings.walk_over == "crops":
        return CropSamples(clips, seed, side, length, gap)
    return GridSamples(clips, seed, side, settings.patch, length, gap)


OBJECTIVES = {
    "timecycle": Objective(_cycle_model, _cycle_samples, lambda settings: Encoder(), picture_cycles),
    "walk": Objective(_walk_model, _walk_samples, _trunk, picture_walk),
}


def choose_clips(settings: Settings) -> list[Clip]:
    """The clips that the settings name. Raises InputError if there are none."""
    if settings.filelist:
        return listed_clips(settings.filelist)
    if settings.videos:
        return video_clips(settings.videos, settings.cache_mb * 1_000_000)
    return synthetic_clips(settings.made_clips, MADE_FRAMES, settings.seed)


def fingerprint(clips: list[Clip]) -> str:
    """What tells one set of clips from another: a digest of their names, in order. Opens none of them."""
    return hashlib.sha256("\n".join(clip.name for clip in clips).encode()).hexdigest()
