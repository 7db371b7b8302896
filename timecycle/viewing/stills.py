"""Small pictures for pages: frames, masks painted on them, maps of errors. Does not import torch."""

import cv2
import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.viewing.overlays import paint

LONGEST_SIDE = 480  # pixels of a picture; larger frames are reduced
QUALITY = 72
DIMMED = 0.45  # of the frame's gray under an error map

HIT, FALSE, MISS = (45, 125, 210), (255, 145, 0), (255, 255, 255)
"""RGB of what an error map tells apart. Their lightness differs enough for every kind of color blindness."""


def reduced(rgb: np.ndarray, *masks: np.ndarray) -> tuple[np.ndarray, ...]:
    """A frame, uint8 RGB [H, W, 3], and masks of it, uint8 [H, W], at most `LONGEST_SIDE` pixels wide and high."""
    scale = LONGEST_SIDE / max(rgb.shape)
    if scale >= 1:
        return rgb, *masks
    size = [max(1, round(scale * side)) for side in rgb.shape[1::-1]]
    small = [cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST) for mask in masks]
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), *small


def still(rgb: np.ndarray, mask: np.ndarray | None = None) -> bytes:
    """A frame, uint8 RGB [H, W, 3], with its mask, uint8 ids [H, W], if there is one, as a small JPEG."""
    if mask is None:
        return jpeg_bytes(reduced(rgb)[0], QUALITY)
    small, ids = reduced(rgb, mask)
    return jpeg_bytes(paint(small, ids), QUALITY)


def error_map(rgb: np.ndarray, truth: np.ndarray, result: np.ndarray, id_: int) -> bytes:
    """Where an object is found, wrongly found and missed, over the dimmed gray frame, as a small JPEG.

    Args:
        rgb: the frame, uint8 RGB [H, W, 3].
        truth: ids of the annotation, uint8 [H, W].
        result: ids of the result, uint8 [H, W].
        id_: the object's id.
    """
    rgb, truth, result = reduced(rgb, truth, result)
    gray = DIMMED * cv2.cvtColor(rgb, cv2.COLOR_RGB2GRAY).astype(np.float32)
    painted = np.repeat(np.rint(gray).astype(np.uint8)[..., None], 3, axis=2)
    true, found = truth == id_, result == id_
    for color, where in ((HIT, true & found), (FALSE, found & ~true), (MISS, true & ~found)):
        painted[where] = color
    return jpeg_bytes(painted, QUALITY)
