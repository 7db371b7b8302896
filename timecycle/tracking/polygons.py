"""Objects drawn in annotation programs: JSON files of labelme, and of COCO. Does not import torch.

labelme: shapes with one label and one group_id are one object; every shape without a group_id is an object of its own.
Polygons, rectangles (two opposite corners) and circles (center and a point of the circle) are read.
COCO: every annotation is an object; polygons of one annotation are its parts, and RLE, compressed or not, is exact.

Objects have the ids 1, 2, ... in the order of the file, in COCO per image. A pixel belongs to a polygon if its
center is inside by the even-odd rule, where pixel (0, 0) fills the square from (0, 0) to (1, 1).
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.images import most_pixels
from timecycle.data.masks import LARGEST_ID
from timecycle.errors import InputError, said
from timecycle.files import read_json
from timecycle.tracking.coco import rle_decode

EXPECTED = "JSON of labelme (with shapes) or COCO (with images and annotations)"
CIRCLE_POINTS = 180
Size = tuple[int, int]
"""Height and width, in pixels."""


@dataclass(frozen=True, eq=False)
class PolygonShape:
    """One object of one image."""

    id: int
    """1, 2, ... in each image."""
    name: str
    """Its label or category."""
    frame: str | None
    """Name of the image file; None if the file does not say."""
    size: Size
    """Height and width of the image, in pixels."""
    mask: np.ndarray
    """bool [H, W], with at least one pixel."""


def read_polygons(path: Path) -> list[PolygonShape]:
    """The objects of a JSON file of labelme or COCO, in its order.

    Raises InputError, naming the file and the shape, if it is neither, is damaged, or holds no shapes, shapes of other
    kinds, shapes without a pixel, or more than 254 in an image.
    """
    content = read_json(path, EXPECTED)
    if isinstance(content, dict) and isinstance(content.get("shapes"), list):
        return _labelme(content, path)
    if isinstance(content, dict) and isinstance(content.get("annotations"), list):
        return _coco(content, path)
    raise InputError(f"{path} has neither shapes nor images with annotations; expected {EXPECTED}")


def id_mask(shapes: Sequence[PolygonShape]) -> np.ndarray:
    """The objects of one image as one mask, uint8 [H, W] of ids; later ones cover earlier ones."""
    mask = np.zeros(shapes[0].size, np.uint8)
    for shape in shapes:
        mask[shape.mask] = shape.id
    return mask


def _labelme(content: dict[str, Any], path: Path) -> list[PolygonShape]:
    size = _size(content.get("imageHeight"), content.get("imageWidth"), str(path))
    image = content.get("imagePath")
    groups: dict[Any, np.ndarray] = {}
    for number, shape in enumerate(content["shapes"]):
        name = f"shape {number} of {path}"
        if not isinstance(shape, dict):
            raise InputError(f"{name} is {said(shape)}; expected an object with label, points and shape_type")
        group = shape.get("group_id")
        if not (group is None or isinstance(group, str | int)):
            raise InputError(f"{name} has the group_id {said(group)}; expected a number, or null")
        # The number keeps shapes without a group apart.
        key = (str(shape.get("label", "")), group, None if group is not None else number)
        mask = filled([_outline(shape, name)], size, name)
        groups[key] = groups[key] | mask if key in groups else mask
    frame = Path(image.replace("\\", "/")).name if isinstance(image, str) and image else None
    found = [(label, mask) for (label, *_), mask in groups.items()]
    return _numbered(found, frame, size, path)


def _outline(shape: dict[str, Any], name: str) -> np.ndarray:
    """The corners of a labelme shape, float64 [N, 2]."""
    kind = shape.get("shape_type", "polygon")
    points = _points(shape.get("points"), name)
    if kind == "polygon" and len(points) >= 3:
        return points
    if kind == "rectangle" and len(points) == 2:
        (left, top), (right, bottom) = points
        return np.array([(left, top), (right, top), (right, bottom), (left, bottom)])
    if kind == "circle" and len(points) == 2:
        angles = np.arange(CIRCLE_POINTS) * (2 * math.pi / CIRCLE_POINTS)
        radius = math.dist(points[0], points[1])
        return points[0] + radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    raise InputError(
        f"{name} is a {said(kind)} of {len(points)} points; expected a polygon of at least 3, a rectangle of 2 or a "
        "circle of 2"
    )


def _coco(content: dict[str, Any], path: Path) -> list[PolygonShape]:
    images = {image["id"]: image for image in _entries(content, "images", path)}
    categories = {entry["id"]: str(entry.get("name", "")) for entry in _entries(content, "categories", path)}
    found: dict[Any, list[tuple[str, np.ndarray]]] = {}
    for number, annotation in enumerate(content["annotations"]):
        name = f"annotation {number} of {path}"
        where = annotation.get("image_id") if isinstance(annotation, dict) else None
        if not isinstance(where, int | str) or where not in images:
            raise InputError(f"{name} has the image_id {said(where)}; expected one of the file's images")
        size = _size(images[where].get("height"), images[where].get("width"), f"image {said(where)} of {path}")
        category = annotation.get("category_id")
        label = categories.get(category, "") if isinstance(category, int | str) else ""
        found.setdefault(where, []).append((label, _segmentation(annotation.get("segmentation"), size, name)))
    shapes: list[PolygonShape] = []
    for where, masks in found.items():
        file = images[where].get("file_name")
        frame = Path(file.replace("\\", "/")).name if isinstance(file, str) and file else None
        shapes += _numbered(masks, frame, masks[0][1].shape, path)
    return shapes or _numbered([], None, (0, 0), path)


def _entries(content: dict[str, Any], key: str, path: Path) -> list[dict[str, Any]]:
    """A list of COCO's whose entries have ids."""
    entries = content.get(key, [])
    if not isinstance(entries, list) or not all(
        isinstance(entry, dict) and isinstance(entry.get("id"), int | str) for entry in entries
    ):
        raise InputError(f"{path} has {key} that are no list of objects with an id; expected {EXPECTED}")
    return entries


def _segmentation(segmentation: Any, size: Size, name: str) -> np.ndarray:
    """The mask, bool [H, W], of COCO's polygons or RLE."""
    if isinstance(segmentation, dict):
        mask = rle_decode(segmentation, f"the segmentation of {name}")
        if mask.shape != size:
            raise InputError(
                f"the segmentation of {name} is {mask.shape[1]} x {mask.shape[0]}; expected {size[1]} x {size[0]} like "
                "its image"
            )
        return _visible(mask, name)
    if not isinstance(segmentation, list) or not segmentation:
        raise InputError(f"{name} has no segmentation; expected polygons [[x, y, x, y, ...], ...] or RLE")
    parts = []
    for part in segmentation:
        if not isinstance(part, list) or len(part) < 6 or len(part) % 2:
            raise InputError(f"{name} has the polygon {said(part)}; expected [x, y, x, y, ...] of at least 3 points")
        parts.append(_points([part[i : i + 2] for i in range(0, len(part), 2)], name))
    return filled(parts, size, name)


def _numbered(found: Sequence[tuple[str, np.ndarray]], frame: str | None, size: Size, path: Path) -> list[PolygonShape]:
    if not 1 <= len(found) <= LARGEST_ID:
        where = f" for {frame}" if frame and found else ""
        raise InputError(f"{path} holds {len(found) or 'no'} shapes{where}; expected 1 to {LARGEST_ID} objects")
    return [PolygonShape(i, label, frame, size, mask) for i, (label, mask) in enumerate(found, 1)]


def _size(height: Any, width: Any, name: str) -> Size:
    if not (type(height) is int and type(width) is int and height > 0 and width > 0):
        raise InputError(f"{name} has the size {said(width)} x {said(height)}; expected numbers of pixels")
    if height * width > most_pixels():
        raise InputError(f"{name} has {width} x {height} pixels; expected at most {most_pixels()}")
    return height, width


def _points(points: Any, name: str) -> np.ndarray:
    """Points of a JSON file, [[x, y], ...], as float64 [N, 2]."""
    if not isinstance(points, list) or not all(
        isinstance(point, list) and len(point) == 2 and all(type(n) in (int, float) and abs(n) < 1e6 for n in point)
        for point in points
    ):
        raise InputError(f"{name} has the points {said(points)}; expected [[x, y], ...] in pixels")
    return np.array(points, np.float64).reshape(-1, 2)


def filled(polygons: Iterable[np.ndarray], size: Size, name: str) -> np.ndarray:
    """The union of polygons, float [N, 2] of (x, y) corners each, bool [H, W] of height and width `size`.

    Parts outside the image are cut off. Raises InputError, naming the shape `name`, if no pixel's center is inside.
    """
    mask = np.zeros(size, bool)
    for polygon in polygons:
        mask |= _even_odd(polygon, size)
    return _visible(mask, name)


def _even_odd(corners: np.ndarray, size: Size) -> np.ndarray:
    """The pixels, bool [H, W], whose centers are inside a polygon, float64 [N, 2] corners, by the even-odd rule."""
    height, width = size
    crossings = np.zeros((height, width + 1), bool)  # whether the inside begins or ends left of a pixel's center
    for (x0, y0), (x1, y1) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        # The rows whose centers, y + 0.5, are between the edge's ends.
        first, last = (min(max(math.ceil(y - 0.5), 0), height) for y in sorted((y0, y1)))
        rows = np.arange(first, last)
        if len(rows):
            x = x0 + (rows + 0.5 - y0) * ((x1 - x0) / (y1 - y0))
            crossings[rows, np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)] ^= True
    return np.logical_xor.accumulate(crossings, axis=1)[:, :width]


def _visible(mask: np.ndarray, name: str) -> np.ndarray:
    if not mask.any():
        raise InputError(f"{name} covers no pixel of the image; expected a shape that does")
    return mask
