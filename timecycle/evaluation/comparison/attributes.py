"""How large, fast and long objects are: what scores are compared by. From annotations only, with NumPy."""

import math
from dataclasses import dataclass

import numpy as np

from timecycle.evaluation.davis.pixels import ObjectPixels
from timecycle.evaluation.davis.tables import Scores

SIZES = {"small": 0.02, "medium": 0.08, "large": math.inf}
"""Share of the frame below which an object is of a class, the smallest that fits."""
SPEEDS = {"slow": 5.0, "fast": math.inf}
"""Per cent of its own size in a frame, likewise."""
LENGTHS = {"short": 60, "long": math.inf}
"""Frames, likewise."""


@dataclass(frozen=True)
class Attributes:
    """An object's size, speed and length, and the classes that they belong to."""

    size: float
    """Mean area as a share of the frame, of the scored frames in which it is annotated; NaN if there are none."""
    speed: float
    """Median motion of its center from one frame to the next, in per cent of its own size, which is the square root of
    its area; NaN if it is never in two scored frames in a row."""
    length: int
    """Frames of the sequence."""
    size_class: str
    """One of SIZES."""
    speed_class: str
    """One of SPEEDS."""
    length_class: str
    """One of LENGTHS."""


def attributes(scores: Scores) -> dict[tuple[str, int], Attributes]:
    """The attributes of every object, by sequence and id.

    Objects that no mask has, and those without `ObjectScores.pixels`, of scores of earlier versions, are left out.
    """
    return {
        (name, id_): attributes_of(one.pixels)
        for name, objects in scores.sequences.items()
        for id_, one in enumerate(objects, start=1)
        if one.pixels is not None and not one.absent
    }


def attributes_of(pixels: ObjectPixels) -> Attributes:
    """The attributes of one object."""
    areas = pixels.truth[pixels.truth > 0]
    size = float(areas.mean() / pixels.frame) if areas.size else math.nan
    both = np.sqrt(np.sqrt(pixels.truth[1:].astype(float)) * np.sqrt(pixels.truth[:-1]))
    moved = np.hypot(*np.diff(pixels.center, axis=0).T)
    steps = moved[both > 0] / both[both > 0]
    speed = 100 * float(np.median(steps)) if steps.size else math.nan
    length = len(pixels.truth) + 2
    return Attributes(size, speed, length, _class(SIZES, size), _class(SPEEDS, speed), _class(LENGTHS, length))


def _class(limits: dict[str, float], value: float) -> str:
    """The first class whose limit is above a value; the last one for NaN, as for none."""
    return next((name for name, limit in limits.items() if value < limit), list(limits)[-1])
