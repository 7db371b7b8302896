"""Masks in the two formats of COCO: run-length encoding (RLE), both ways, and polygons. Does not import torch.

Formats: https://cocodataset.org/#format-data, and for compressed counts `maskApi.c` of cocoapi.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import cv2
import numpy as np

from timecycle.data.images import most_pixels
from timecycle.errors import InputError, said

STRAIGHTENED = 0.3  # pixels by which an outline may be off, so that slanted edges need fewer points
_BITS = 5  # of a count per character
_SHIFT = 48  # of a character's code
_MOST_CHARACTERS = 7  # of a count, which is less than 2 ** 31


def rle_encode(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, bool [H, W], as compressed RLE: {"size": [H, W], "counts": str}. Exact.

    The counts are lengths of runs in column-major order, alternately of 0 and 1, the first of 0.
    """
    return rle_of_part(np.asarray(mask, bool), 0, 0, mask.shape)


def rle_of_part(part: np.ndarray, top: int, left: int, size: Sequence[int]) -> dict[str, Any]:
    """`rle_encode` of a mask of height and width `size` that is zero but for `part`, bool [h, w], at (top, left)."""
    columns = np.zeros((part.shape[1], part.shape[0] + 2), np.int8)
    columns[:, 1:-1] = part.T
    steps = np.diff(columns, axis=1)
    begins, ends = (_places(steps == sign, top, left, size[0]) for sign in (1, -1))
    # A run that reaches the bottom of a column may go on at the top of the next.
    apart = begins[1:] != ends[:-1]
    begins, ends = begins[np.append(True, apart)[: len(begins)]], ends[np.append(apart, True)[: len(ends)]]
    changes = np.stack([begins, ends], axis=1).ravel()
    total = size[0] * size[1]
    ends_there = changes.size and changes[-1] == total
    counts = np.diff(np.concatenate([[0], changes, [] if ends_there else [total]]).astype(np.int64))
    return {"size": [int(n) for n in size], "counts": _compressed(counts)}


def _places(found: np.ndarray, top: int, left: int, height: int) -> np.ndarray:
    """Positions in column-major order of the True elements, [w, h + 1], of a part at (top, left). int64 [n]."""
    x, y = np.nonzero(found)
    return (x + left) * height + y + top


def rle_decode(rle: Mapping[str, Any], name: str = "the segmentation") -> np.ndarray:
    """Decode RLE, {"size": [H, W], "counts": a compressed string or a list of run lengths}, to a mask, bool [H, W].

    name: what is decoded, for error messages. Raises InputError for anything else, and for counts that do not add up.
    """
    size, counts = rle.get("size"), rle.get("counts")
    if not (isinstance(size, list | tuple) and len(size) == 2 and all(type(n) is int and n > 0 for n in size)):
        raise InputError(f"{name} has the size {said(size)}; expected [height, width]")
    if size[0] * size[1] > most_pixels():
        raise InputError(f"{name} has {size[1]} x {size[0]} pixels; expected at most {most_pixels()}")
    if isinstance(counts, str | bytes):
        runs = _uncompressed(counts, name)
    elif isinstance(counts, list) and all(type(n) is int and 0 <= n < 1 << 31 for n in counts):
        runs = np.array(counts, np.int64)
    else:
        raise InputError(f"{name} has the counts {said(counts)}; expected lengths of runs, or a string of COCO's RLE")
    if (runs < 0).any() or runs.sum() != size[0] * size[1]:
        raise InputError(f"{name} has counts that do not add up to {size[1]} x {size[0]} pixels; expected COCO's RLE")
    values = np.arange(len(runs)) % 2 == 1
    return np.ascontiguousarray(np.repeat(values, runs).reshape(size[1], size[0]).T)


def _compressed(counts: np.ndarray) -> str:
    """Counts, int64 [n], as COCO's string: from the fourth on their difference from the last but one, 5 bits at a time.

    Low bits come first; bit 6 of a character says that more follow, and bit 5 of the last is the sign.
    """
    values = counts.copy()
    values[3:] -= counts[1:-2]
    places = np.arange(_MOST_CHARACTERS)
    # A character is the last if it and its sign bit hold the whole remaining value.
    rest = values[:, None] >> (_BITS * places)
    last = (rest >= -(1 << _BITS - 1)) & (rest < 1 << _BITS - 1)
    used: np.ndarray = np.cumsum(last, axis=1) - last == 0
    codes = (rest & 31) + np.where(last, 0, 32) + _SHIFT
    return codes[used].astype(np.uint8).tobytes().decode("ascii")


def _uncompressed(text: str | bytes, name: str) -> np.ndarray:
    """The counts, int64 [n], of COCO's string. Raises InputError if it is none."""
    data = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    codes = np.frombuffer(data, np.uint8).astype(np.int64) - _SHIFT
    last = (codes & 32) == 0
    starts = np.concatenate([[0], np.flatnonzero(last) + 1])
    lengths = np.diff(starts)
    if not len(codes):
        return codes
    if codes.min() < 0 or codes.max() > 63 or not last[-1] or lengths.max() > _MOST_CHARACTERS:
        raise InputError(f"{name} has damaged counts, {said(text)}; expected a string of COCO's RLE")
    places = np.arange(len(codes)) - np.repeat(starts[:-1], lengths)
    values = np.add.reduceat((codes & 31) << (_BITS * places), starts[:-1])
    negative = (codes[last] & 16) != 0
    values[negative] -= np.int64(1) << (_BITS * lengths[negative])
    counts = values.copy()
    counts[1::2] = np.cumsum(values[1::2])
    counts[2::2] = np.cumsum(values[2::2])
    return counts


def polygons_of(part: np.ndarray, top: int = 0, left: int = 0) -> list[list[float]]:
    """Outlines of a mask, bool [h, w], whose upper left pixel is at (top, left) of the frame: [x, y, x, y, ...] each.

    Coordinates are of the pixels' corners: pixel (0, 0) fills the square from (0, 0) to (1, 1). Outlines are off by up
    to STRAIGHTENED pixels: filling by the pixels' centers gives the mask back, while programs with other rules may
    differ along edges; RLE is exact. COCO has no holes: each is joined to its outline by a cut of no width, which fills
    correctly by the even-odd rule.
    """
    # On a grid of twice the size a pixel and its edges are 3 x 3 points, and contours run along the pixels' corners.
    height, width = part.shape
    grid = np.zeros((2 * height + 1, 2 * width + 1), np.uint8)
    grid[1::2, 1::2] = part
    grid = cv2.dilate(grid, np.ones((3, 3), np.uint8))
    contours, hierarchy = cv2.findContours(grid, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    polygons: list[list[float]] = []
    for contour, (_, _, hole, parent) in zip(contours, hierarchy[0] if contours else (), strict=True):
        if parent >= 0:
            continue
        ring = _straightened(contour)
        while hole >= 0:
            ring = _joined(ring, _straightened(contours[hole]))
            hole = hierarchy[0][hole][0]
        polygons.append((ring / 2 + (left, top)).ravel().tolist())
    return polygons


def _straightened(contour: np.ndarray) -> np.ndarray:
    """A contour, int [N, 1, 2], with fewer points, [n, 2]; as it is if fewer than three would remain."""
    simple = cv2.approxPolyDP(contour, 2 * STRAIGHTENED, True)
    return (simple if len(simple) > 2 else contour)[:, 0]


def _joined(ring: np.ndarray, hole: np.ndarray) -> np.ndarray:
    """One ring of an outline and a hole in it, [n, 2] each, joined by the shortest cut between two of their points."""
    away = np.square(ring[:, None] - hole[None]).sum(axis=2)
    at, start = np.unravel_index(int(away.argmin()), away.shape)
    around = np.roll(hole, -start, axis=0)
    return np.concatenate([ring[: at + 1], around, around[:1], ring[at:]])
