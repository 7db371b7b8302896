"""Tables and cut-outs of a tracked video, written frame by frame. Does not import torch."""

import csv
import io
from collections.abc import Iterable, Mapping
from pathlib import Path

import cv2
import numpy as np

from timecycle.errors import check_least
from timecycle.files import partial_path, remove_leftovers, writing
from timecycle.viewing.cutouts import alpha_png
from timecycle.viewing.regions import object_boxes, where

COLUMNS = (
    "frame", "time", "object", "area", "x", "y", "width", "height", "centroid_x", "centroid_y", "confidence",
)  # fmt: skip
"""Of a table. time: seconds. area: pixels. x, y, width, height: the bounding box, in pixels, whose upper left pixel is
(x, y). centroid: the mean of the pixels' x and y. confidence: from 0 to 1."""

Row = tuple[str, ...]


def object_rows(
    frame: int,
    time: float,
    mask: np.ndarray,
    ids: Iterable[int],
    confidence: Mapping[int, float] | None = None,
) -> list[Row]:
    """Rows of a table, as texts by COLUMNS, for the objects `ids` of a frame with this mask, uint8 [H, W].

    An object that is not there has area 0, and no box or centroid. confidence: by id.
    """
    boxes = object_boxes(mask)
    rows = []
    for id_ in ids:
        place: tuple[str, ...] = ("0", "", "", "", "", "", "")
        if id_ in boxes:
            top, left = (part.start for part in boxes[id_])
            part = where(mask[boxes[id_]] == id_)
            moments = cv2.moments(part, binaryImage=True)
            area = round(moments["m00"])
            center = (f"{moments[m] / area + start:.2f}" for m, start in (("m10", left), ("m01", top)))
            place = (str(area), *(str(n) for n in (left, top, part.shape[1], part.shape[0])), *center)
        known = confidence is not None and id_ in confidence
        rows.append(
            (str(frame), f"{float(time):.6f}", str(id_), *place, f"{confidence[id_]:.4f}" if known else "")  # type: ignore[index]
        )
    return rows


class CsvWriter:
    """A table of tracked objects, CSV with a header, to which each `add` appends rows that stay if the run ends there.

    Constructor and methods raise InputError if the file cannot be written.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        with writing(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("w", encoding="utf-8", newline="\n")
        self.add([COLUMNS])

    def add(self, rows: Iterable[Row]) -> None:
        """Append rows of `object_rows`."""
        with writing(self._path):
            self._file.write(_csv(rows))
            self._file.flush()

    def close(self) -> None:
        """Close the file."""
        with writing(self._path):
            self._file.close()


def _csv(rows: Iterable[Row]) -> str:
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(rows)
    return text.getvalue()


class AlphaFrames:
    """Cut-outs of a video's objects as PNG files with transparency: FOLDER/00000.png, 00001.png, ...

    id: the object to cut out; None: all. Constructor and methods raise InputError if a file cannot be written.
    """

    def __init__(self, folder: Path, id: int | None = None) -> None:
        self._folder, self._id = folder, id
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        remove_leftovers(folder)

    def add(self, frame: int, rgb: np.ndarray, mask: np.ndarray) -> None:
        """Write the cut-out of a frame, uint8 RGB [H, W, 3], by its mask, uint8 [H, W]; see `cutouts.cut_out`."""
        check_least(0, frame=frame)
        path = self._folder / f"{frame:05d}.png"
        with writing(path):  # not flushed to disk one by one, which would take longer than all the rest
            partial_path(path).write_bytes(alpha_png(rgb, mask, self._id))
            partial_path(path).replace(path)
