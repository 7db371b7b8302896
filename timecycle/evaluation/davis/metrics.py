"""J and F of one frame, and their DAVIS statistics over frames, in NumPy without torch.

Equal to the official davis2017-evaluation, except that decay is also correct beyond 255 scored frames.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import cv2
import numpy as np

from timecycle.data.masks import VOID
from timecycle.errors import InputError
from timecycle.evaluation.metrics import mean


class Statistics(NamedTuple):
    """DAVIS statistics of one object's J or F over frames; NaN if nothing is scored. See `statistics`."""

    mean: float
    """Mean over the frames."""
    recall: float
    """Share of the frames above 0.5."""
    decay: float
    """Mean of the first quarter minus that of the last."""


def frame_jaccard(annotation: np.ndarray, prediction: np.ndarray) -> float:
    """J: intersection over union of two masks of one object, 1 if both are empty.

    Args:
        annotation: bool or uint8 [H, W], nonzero inside the object.
        prediction: the same of the result.

    Raises InputError if their sizes differ.
    """
    return _jaccard(*_crop_to_object(annotation != 0, prediction != 0))


def frame_boundary_f(annotation: np.ndarray, prediction: np.ndarray, tolerance: int | None = None) -> float:
    """F: boundary F measure of two masks of one object (Perazzi et al., CVPR 2016, as in the official evaluation).

    Args:
        annotation: bool or uint8 [H, W], nonzero inside the object.
        prediction: the same of the result.
        tolerance: a boundary pixel is matched if the other boundary has one within so many pixels; by default
            `ceil(0.008 * image diagonal)`.

    Raises InputError if their sizes differ.
    """
    if tolerance is None:
        tolerance = _tolerance(*annotation.shape)
    return _boundary_f(*_crop_to_object(annotation != 0, prediction != 0), tolerance)


def statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of one object's values over frames.

    Args:
        values: [N], NaN allowed; if N is 0 all three are NaN.

    Mean and decay ignore NaN; recall is the share strictly above 0.5, where NaN counts as a failure. Decay is the
    mean of the first quarter minus that of the last; neighboring quarters share a frame.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return Statistics(math.nan, math.nan, math.nan)
    # The official code casts these indices to uint8, so that its decay is wrong from 256 values on.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return Statistics(mean(values), float(np.mean(values > 0.5)), mean(first) - mean(last))


def score_frame(annotation: np.ndarray, result: np.ndarray, objects: int) -> np.ndarray:
    """J and F of every object in one frame.

    Args:
        annotation: ids, uint8 [H, W]. Void (255) counts as background, as in the official semi-supervised task.
        result: ids, uint8 [H, W].
        objects: number of objects; objects 1 to `objects` are scored.

    Returns:
        float64 [objects, 2], J and F.

    Raises InputError if the sizes differ or the result holds a larger id.
    """
    if annotation.shape != result.shape:
        raise InputError(f"the result is {_size(result)}; expected {_size(annotation)}, the size of its annotation")
    largest = int(result.max())
    if largest > objects:
        hint = ""
        if largest == VOID:
            hint = " (--remap-255 reads 255 as object 1)"
        elif objects == 1:
            hint = " (for annotations with one object, as DAVIS-2016, --year 2016 reads every object as object 1)"
        raise InputError(
            f"the result holds id {largest}; expected none above {objects}, the number of objects annotated in the "
            f"sequence's first frame{hint}"
        )
    tolerance = _tolerance(*annotation.shape)
    scores = np.empty((objects, 2))
    for i in range(objects):
        pair = _crop_to_object(annotation == i + 1, result == i + 1)
        scores[i] = _jaccard(*pair), _boundary_f(*pair, tolerance)
    return scores


def _crop_to_object(annotation: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop two masks, bool [H, W], to their joint box plus one pixel: uint8 0 or 1, no rows if both are empty.

    One pixel is enough: boundary pixels are at most one pixel outside the mask, dilation only matters on the other
    boundary, and the last row or column is either the image's own or background, which gives the same boundary.
    """
    if annotation.shape != prediction.shape:
        raise InputError(f"the prediction is {_size(prediction)}; expected {_size(annotation)} like the annotation")
    masks = annotation.view(np.uint8), prediction.view(np.uint8)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, masks) if w]
    if not boxes:
        return masks[0][:0], masks[1][:0]
    x0, y0 = (max(min(box[i] for box in boxes) - 1, 0) for i in (0, 1))
    x1, y1 = (max(box[i] for box in boxes) + 1 for i in (2, 3))
    return masks[0][y0:y1, x0:x1], masks[1][y0:y1, x0:x1]


def _jaccard(annotation: np.ndarray, prediction: np.ndarray) -> float:
    union = np.count_nonzero(annotation | prediction)
    return np.count_nonzero(annotation & prediction) / union if union else 1.0


def _boundary_f(annotation: np.ndarray, prediction: np.ndarray, tolerance: int) -> float:
    if not annotation.size:
        return 1.0
    wanted, found = _boundary(annotation), _boundary(prediction)
    n_wanted, n_found = np.count_nonzero(wanted), np.count_nonzero(found)
    if not n_wanted or not n_found:
        return float(n_wanted == n_found)
    disk = _disk(tolerance)
    precision = np.count_nonzero(found & cv2.dilate(wanted, disk)) / n_found
    recall = np.count_nonzero(wanted & cv2.dilate(found, disk)) / n_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their east, south or south-east neighbor.

    The last row is compared with its east neighbors only, the last column with its south ones, the corner with none.
    """
    boundary = np.zeros_like(mask)
    inner = mask[:-1, :-1]
    boundary[:-1, :-1] = (inner ^ mask[:-1, 1:]) | (inner ^ mask[1:, :-1]) | (inner ^ mask[1:, 1:])
    boundary[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    boundary[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return boundary


def _tolerance(height: int, width: int) -> int:
    return math.ceil(0.008 * math.hypot(height, width))


@lru_cache
def _disk(radius: int) -> np.ndarray:
    # cv2.getStructuringElement's ellipses differ from this disk.
    square = np.arange(-radius, radius + 1) ** 2
    return (square[:, None] + square <= radius**2).astype(np.uint8)


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"
