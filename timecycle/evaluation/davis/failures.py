"""Which frames and pixels of an evaluation are worth explaining: the worst frames, and where they are wrong."""

from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np

from timecycle.data.masks import VOID
from timecycle.evaluation.davis.tables import Frame, Scores
from timecycle.viewing.labels import visual_center
from timecycle.viewing.regions import where


@dataclass(frozen=True)
class Failure:
    """An object that is wrong in a frame."""

    sequence: str
    """Name of the sequence."""
    object_id: int
    """Id of the object, from 1."""
    index: int
    """Of the frame in its sequence, from 0."""


def worst_of(scores: Scores | None, sequence: str | None = None) -> Frame | None:
    """The frame and object with the lowest mean of J and F, of one sequence or of all; None if nothing is scored."""
    found = scores.worst(_everything(scores)) if scores else []
    return next((frame for frame in found if sequence in (None, frame.sequence)), None)


def wrong_pixel(truth: np.ndarray, result: np.ndarray, object_id: int | None = None) -> tuple[int, int] | None:
    """X and y of a pixel amid the largest wrong region of a mask; None if nothing is wrong.

    Args:
        truth: uint8 [H, W] ids; void (255) is never wrong.
        result: uint8 [H, W] ids.
        object_id: only where this object is missing, or too much.
    """
    wrong = (truth != result) & (truth != VOID)
    if object_id is not None:
        wrong &= (truth == object_id) | (result == object_id)
    count, parts, stats, _ = cv2.connectedComponentsWithStats(where(wrong), connectivity=4)
    if count < 2:
        return None
    largest = 1 + int(stats[1:, cv2.CC_STAT_AREA].argmax())
    left, top, width, height = stats[largest, :4].tolist()
    box = (slice(top, top + height), slice(left, left + width))
    row, column = visual_center((parts == largest).astype(np.uint8), 1, box)
    return column, row


def worst_failures(scores: Scores, count: int, most_frames: int | None = None) -> list[Failure]:
    """The worst frame of each object, lowest first: up to `count`.

    most_frames: of the sequences' frames that may be propagated again for them, see `frames_needed`; None for any.
    """
    places = {name: {file: index for index, file in enumerate(files, 1)} for name, files in scores.files.items()}
    found: list[Failure] = []
    seen: set[tuple[str, int]] = set()
    for worst in scores.worst(_everything(scores)):
        key = worst.sequence, worst.object_id
        if key in seen:
            continue
        seen.add(key)
        failure = Failure(*key, places[worst.sequence][worst.file])  # frame 0 is not scored
        if len(found) < count and (most_frames is None or frames_needed([*found, failure]) <= most_frames):
            found.append(failure)
    return found


def frames_needed(failures: Iterable[Failure]) -> int:
    """Number of frames that are propagated for failures: in each sequence those up to the last one."""
    last: dict[str, int] = {}
    for failure in failures:
        last[failure.sequence] = max(last.get(failure.sequence, 0), failure.index)
    return sum(index + 1 for index in last.values())


def _everything(scores: Scores) -> int:
    """Number of scored frames of all objects."""
    return sum(len(one.jaccard) for objects in scores.sequences.values() for one in objects)
