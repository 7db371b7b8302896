"""Synthetic clips rendered in memory."""

from typing import NamedTuple

import numpy as np

from timecycle.data.synthetic import Motion, Scene


class Rendered(NamedTuple):
    """RGB uint8 [F, H, W, 3], and ids uint8 [F, H, W]."""

    images: np.ndarray
    masks: np.ndarray


def render_clip(
    seed: int, frames: int, height: int, width: int, objects: int, motion: Motion | None = None
) -> Rendered:
    """All frames of a scene."""
    scene = Scene(seed, frames, height, width, objects, motion)
    return Rendered(*map(np.stack, zip(*map(scene.frame, range(frames)), strict=True)))
