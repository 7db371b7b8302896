"""A COCO JSON file of a tracked video, in bounded memory. Does not import torch."""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TextIO

import numpy as np

from timecycle.errors import InputError
from timecycle.files import growing, writing
from timecycle.tracking.coco import polygons_of, rle_of_part
from timecycle.viewing.regions import object_boxes

Segmentation = Literal["rle", "polygons"]
UNNAMED = "object"  # category of objects without a name


class CocoWriter:
    """Annotations of tracked objects as one COCO JSON file, complete with `close`.

    Until then each frame is a line of a hidden file beside it, `.NAME.frames`, from which the JSON file is assembled
    line by line: memory does not grow with the frames.

    images: id and frame_index are the frame's number; file_name, width, height, and time in seconds if given.
    annotations: one per frame and object that is there. track_id is the object's id; bbox is [x, y, width, height] and
    area a number of pixels, both of the mask; score is the confidence, if given; iscrowd is 0. segmentation is
    compressed RLE, which is exact, or polygons, which other programs fill nearly so (`coco.polygons_of`).
    categories: the objects' names, or "object".

    Args:
        path: the JSON file.
        segmentation: "rle" or "polygons".
        names: of objects by id.

    Constructor and methods raise InputError if a file cannot be written.
    """

    def __init__(self, path: Path, segmentation: Segmentation = "rle", names: Mapping[int, str] | None = None) -> None:
        if segmentation not in ("rle", "polygons"):
            raise InputError(f"--coco is {segmentation!r}; expected rle or polygons")
        self._path, self._segmentation, self._names = path, segmentation, dict(names or {})
        self._categories = {name: i for i, name in enumerate(sorted({UNNAMED, *self._names.values()}), 1)}
        self._frames = path.with_name(f".{path.name}.frames")
        with writing(self._frames):
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self._frames.open("w", encoding="utf-8", newline="\n")

    def add(
        self,
        frame: int,
        mask: np.ndarray,
        file_name: str,
        time: float | None = None,
        confidence: Mapping[int, float] | None = None,
    ) -> None:
        """Append a frame by its mask, uint8 [H, W] of ids. confidence: by object id, from 0 to 1."""
        height, width = mask.shape
        image = {"id": frame, "file_name": file_name, "width": width, "height": height, "frame_index": frame}
        if time is not None:
            image["time"] = round(float(time), 6)
        annotations = [
            self._annotation(frame, id_, mask[box] == id_, (box[0].start, box[1].start), mask.shape, confidence or {})
            for id_, box in object_boxes(mask).items()
        ]
        with writing(self._frames):
            self._file.write(_compact({"image": image, "annotations": annotations}) + "\n")

    def _annotation(
        self,
        frame: int,
        id_: int,
        part: np.ndarray,
        corner: tuple[int, int],
        size: Sequence[int],
        confidence: Mapping[int, float],
    ) -> dict[str, Any]:
        polygons = self._segmentation == "polygons"
        annotation = {
            "image_id": frame,
            "category_id": self._categories[self._names.get(id_, UNNAMED)],
            "track_id": id_,
            "bbox": [corner[1], corner[0], part.shape[1], part.shape[0]],
            "area": int(np.count_nonzero(part)),
            "iscrowd": 0,
            "segmentation": polygons_of(part, *corner) if polygons else rle_of_part(part, *corner, size),
        }
        return annotation | ({"score": round(float(confidence[id_]), 4)} if id_ in confidence else {})

    def close(self) -> None:
        """Write the JSON file, and remove the hidden one."""
        with writing(self._frames):
            self._file.close()
        with growing(self._path) as partial, partial.open("w", encoding="utf-8") as file:
            file.write('{"images": [')
            _write_items(file, (line["image"] for line in self._lines()))
            file.write('],\n"annotations": [')
            annotations = (each for line in self._lines() for each in line["annotations"])
            _write_items(file, ({"id": number, **each} for number, each in enumerate(annotations, 1)))
            categories = [{"id": i, "name": name} for name, i in self._categories.items()]
            file.write(f'],\n"categories": {_compact(categories)}}}\n')
        self._frames.unlink(missing_ok=True)

    def _lines(self) -> Iterator[dict[str, Any]]:
        with self._frames.open(encoding="utf-8") as file:
            for line in file:
                yield json.loads(line)


def _compact(value: Any) -> str:
    return json.dumps(value, separators=(",", ":"), allow_nan=False)


def _write_items(file: TextIO, items: Iterator[dict[str, Any]]) -> None:
    """Write the items of a JSON array, one a line."""
    for number, item in enumerate(items):
        file.write(f"{',' if number else ''}\n{_compact(item)}")
