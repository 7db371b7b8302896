"""Masks in the formats of COCO: run-length encoding (RLE), polygons, and a JSON file of annotations.

Format: https://cocodataset.org/#format-data, and for compressed counts `maskApi.c` of cocoapi. Does not import torch.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np

from timecycle.data.images import most_pixels
from timecycle.errors import InputError, said

_BITS = 5  # of a count per character
_SHIFT = 48  # of a character's code
_MOST_CHARACTERS = 7  # of a count, which is less than 2 ** 31


def rle_encode(mask: np.ndarray) -> dict[str, Any]:
    """Encode a mask, bool [H, W], as compressed RLE: {"size": [H, W], "counts": str}.

    The counts are lengths of runs in column-major order, alternately of 0 and 1, the first of 0.
    """
    flat = np.ascontiguousarray(mask.T, dtype=bool).ravel()
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    start = [0] if flat.size and flat[0] else []
    counts = np.diff(np.concatenate([[0], start, changes, [flat.size]]).astype(np.int64))
    return {"size": list(mask.shape), "counts": _compressed(counts)}


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
