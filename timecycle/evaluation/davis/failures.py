"""Which frames and pixels of an evaluation are worth explaining: the worst frames, and where they are wrong."""

from collections.abc import Iterable

import cv2
import numpy as np

from timecycle.data.masks import VOID
from timecycle.evaluation.davis.report_frames import WorstFrame, worst_frames
from timecycle.evaluation.davis.tables import Frame, Scores
from timecycle.viewing.labels import visual_center
from timecycle.viewing.regions import where

MOST, BUDGET = 4, 0.1
"""Pictures that an evaluation adds to its page unless asked for a number: so many, and so few that the frames encoded
again for them are at most this share of all."""


def worst_of(scores: Scores | None, sequence: str | None = None) -> Frame | None:
    """The frame and object with the lowest mean of J and F, of one sequence or of all; None if nothing is scored."""
    found = scores.worst(None) if scores else []
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


def chosen_failures(scores: Scores, frames: int, count: int | None = None) -> list[WorstFrame]:
    """The worst frames of the page that are explained.

    Args:
        scores: of the evaluation.
        frames: number of frames of all its sequences.
        count: so many of them; by default up to `MOST` that take at most the share `BUDGET` of the frames.
    """
    if count is not None:
        return worst_frames(scores)[:count]
    found: list[WorstFrame] = []
    for worst in worst_frames(scores):
        if len(found) < MOST and frames_needed([*found, worst]) <= BUDGET * frames:
            found.append(worst)
    return found


def frames_needed(failures: Iterable[WorstFrame]) -> int:
    """Number of frames that are propagated to explain failures: in each sequence those up to the last one."""
    last: dict[str, int] = {}
    for failure in failures:
        last[failure.sequence] = max(last.get(failure.sequence, 0), failure.index)
    return sum(index + 1 for index in last.values())
