"""Where an object is in annotations and results, frame by frame: what causes of failure and attributes are made of."""

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

_COLUMNS = ("truth", "result", "both", "other", "other_id")
"""Counts in the order of `count_pixels`, before the center."""


@dataclass(frozen=True, eq=False)
class ObjectPixels:
    """One object's pixels. Arrays are over the N scored frames; areas are numbers of pixels."""

    frame: int
    """Of a whole frame."""
    first: int
    """Of the object in the first annotation, which is given."""
    truth: np.ndarray
    """In the annotation, int64 [N]."""
    result: np.ndarray
    """In the result, int64 [N]."""
    both: np.ndarray
    """In both, int64 [N]."""
    other: np.ndarray
    """In the result, and of another object in the annotation: the one that has most of them, int64 [N]."""
    other_id: np.ndarray
    """Id of that object, int64 [N]; 0 if there is none."""
    center: np.ndarray
    """Mean x and y of the object in the annotation, float64 [N, 2] in pixels; NaN where it is absent."""

    @classmethod
    def of_counts(cls, first: np.ndarray, id_: int, counts: np.ndarray) -> "ObjectPixels":
        """From the first annotation, uint8 [H, W], and what `count_pixels` found for object `id_`: [N, 7]."""
        truth, result, both, other, other_id = counts[:, : len(_COLUMNS)].astype(np.int64).T
        center = counts[:, len(_COLUMNS) :].copy()
        return cls(first.size, int(np.count_nonzero(first == id_)), truth, result, both, other, other_id, center)

    def to_json(self) -> dict[str, Any]:
        """As JSON values, under the names of the fields; the center as "center_x" and "center_y", None for NaN."""
        content: dict[str, Any] = {"frame": self.frame, "first": self.first}
        content |= {name: getattr(self, name).tolist() for name in _COLUMNS}
        for name, values in zip(("center_x", "center_y"), self.center.T, strict=True):
            content[name] = [None if np.isnan(value) else round(float(value), 1) for value in values]
        return content

    @classmethod
    def from_json(cls, content: dict[str, Any]) -> "ObjectPixels":
        """The inverse of `to_json`. Raises KeyError, TypeError or ValueError for anything else."""
        columns = {name: np.array(content[name], np.int64) for name in _COLUMNS}
        center = np.array([content["center_x"], content["center_y"]], np.float64).T
        if any(column.shape != (len(center),) for column in columns.values()):
            raise ValueError("lists of pixels differ in length")
        return cls(int(content["frame"]), int(content["first"]), **columns, center=center)


def count_pixels(annotation: np.ndarray, result: np.ndarray, objects: int) -> np.ndarray:
    """The pixels of every object in one frame.

    Args:
        annotation: ids, uint8 [H, W]; void (255) counts as background.
        result: ids, uint8 [H, W].
        objects: number of objects; objects 1 to `objects` are counted.

    Returns:
        float64 [objects, 7]: truth, result, both, other, other_id, and x and y of the center, see `ObjectPixels`.
    """
    x, y, width, height = cv2.boundingRect(annotation | result)
    here = np.s_[y : y + height, x : x + width]
    truth, found = annotation[here], result[here]
    counts = np.zeros((objects, len(_COLUMNS) + 2))
    counts[:, len(_COLUMNS) :] = np.nan
    if not truth.size:
        return counts
    # A histogram of pairs of ids. OpenCV returns float32, which is exact up to 16,777,216 pixels of a pair.
    pairs = cv2.calcHist([truth, found], [0, 1], None, [256, 256], [0, 256, 0, 256]).astype(np.int64)
    for i in range(objects):
        id_ = i + 1
        elsewhere = pairs[1 : objects + 1, id_].copy()
        elsewhere[i] = 0
        most = int(elsewhere.argmax())
        other = elsewhere[most]
        area = pairs[id_].sum()
        counts[i, : len(_COLUMNS)] = area, pairs[:, id_].sum(), pairs[id_, id_], other, most + 1 if other else 0
        if area:
            inside = (truth == id_).view(np.uint8)
            columns, rows = (cv2.reduce(inside, axis, cv2.REDUCE_SUM, dtype=cv2.CV_32S).ravel() for axis in (0, 1))
            counts[i, -2:] = x + columns @ np.arange(width) / area, y + rows @ np.arange(height) / area
    return counts
