"""Where the objects of a mask are, without a pass over the frame for each. Does not import torch."""

import cv2
import numpy as np

from timecycle.data.masks import VOID

_STRIPS = 32  # about how many strips a frame is divided into, either way
_NARROWEST = 8  # pixels of a strip, at least

Box = tuple[slice, slice]
"""Rows and columns of a rectangle in a frame."""


def object_boxes(mask: np.ndarray) -> dict[int, Box]:
    """Bounding boxes of the objects of a mask, uint8 [H, W], by id, ascending; without 0 and 255.

    Two passes over the frame find the strips that each object crosses; the rest is work in the object's own strips.
    """
    rows, columns = _strips(mask, 0), _strips(mask, 1)
    boxes: dict[int, Box] = {}
    for id_ in np.flatnonzero(rows.any(axis=0)).tolist():
        if id_ in (0, VOID):
            continue
        coarse = _span(rows[:, id_], mask.shape[0]), _span(columns[:, id_], mask.shape[1])
        left, top, width, height = cv2.boundingRect(where(mask[coarse] == id_))
        top, left = top + coarse[0].start, left + coarse[1].start
        boxes[id_] = slice(top, top + height), slice(left, left + width)
    return boxes


def where(condition: np.ndarray) -> np.ndarray:
    """A condition, bool [H, W], as uint8 [H, W]: 255 where it holds, else 0."""
    return np.negative(condition.view(np.uint8))


def _strips(mask: np.ndarray, axis: int) -> np.ndarray:
    """Which ids the strips of rows (axis 0) or of columns (axis 1) of a mask hold: bool [strips, 256]."""
    size = mask.shape[axis]
    cuts = [slice(at, at + _step(size)) for at in range(0, size, _step(size))]
    strips = [mask[cut] if axis == 0 else mask[:, cut] for cut in cuts]
    return np.stack([cv2.calcHist([strip], [0], None, [256], [0, 256]).ravel() for strip in strips]) > 0


def _step(size: int) -> int:
    """Pixels of a strip."""
    return max(_NARROWEST, size // _STRIPS)


def _span(crossed: np.ndarray, size: int) -> slice:
    """From the first crossed strip to the last, bool [strips], in pixels."""
    crossed_strips = np.flatnonzero(crossed)
    step = _step(size)
    return slice(int(crossed_strips[0]) * step, min(size, (int(crossed_strips[-1]) + 1) * step))
