"""Objects cut out of frames, with transparency. Does not import torch."""

import cv2
import numpy as np

from timecycle.data.masks import VOID
from timecycle.viewing.regions import where

FRINGE = 4  # pixels around an object that keep their color, though transparent: for interpolation and coarse chroma


def cut_out(rgb: np.ndarray, mask: np.ndarray, id: int | None = None) -> np.ndarray:
    """Cut an object, or all of them with None, out of a frame, uint8 RGB [H, W, 3], by its mask, uint8 [H, W].

    Returns uint8 RGBA [H, W, 4], not premultiplied: alpha is 255 over the object and 0 elsewhere (void included), where
    colors are black but for a fringe of 4 pixels.
    """
    objects = where((mask > 0) & (mask < VOID) if id is None else mask == id)
    around = cv2.dilate(objects, np.ones((2 * FRINGE + 1, 2 * FRINGE + 1), np.uint8))
    return np.dstack([cv2.copyTo(rgb, around), objects])


def alpha_png(rgb: np.ndarray, mask: np.ndarray, id: int | None = None) -> bytes:
    """The PNG file of `cut_out`."""
    return bytes(cv2.imencode(".png", cv2.cvtColor(cut_out(rgb, mask, id), cv2.COLOR_RGBA2BGRA))[1])
