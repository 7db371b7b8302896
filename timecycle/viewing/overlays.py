"""Masks painted on frames: the one renderer of evaluation, tracking, training and reports. Does not import torch."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import cv2
import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.errors import InputError
from timecycle.files import write_bytes
from timecycle.viewing.labels import GAP, caption_sprite, id_sprite, paste, visual_center
from timecycle.viewing.palette import COLORS
from timecycle.viewing.regions import Box, object_boxes, where
from timecycle.viewing.video_writer import OverlayVideo as OverlayVideo

STANDARD_SIDE = 480  # pixels of a frame's short side at which widths are given
OUTLINE = 2.0  # pixels, inside the object
RIM = 1.5  # pixels, outside
NARROWEST = 0.75  # factor of both in small frames
RIM_OPACITY = 0.8
BLUR = 0.7  # of the outline's width: standard deviation of the blur whose levels serve as distances to the edge
LEAST_LEVEL = 0.6  # of the blurred mask within the object, so that thin parts are painted, however thin
CHECKERS = (np.uint8(92), np.uint8(140))  # gray values
CHECKER = 10.0  # pixels of a square's side


@dataclass(frozen=True)
class Style:
    """How `paint` shows objects."""

    opacity: float = 0.45
    """Of the color over an object, from 0 to 1."""
    contour_only: bool = False
    """Outlines without color over the objects."""
    checkerboard: bool = False
    """A gray checkerboard instead of the background, and the objects as they are; outlined only with `contour_only`."""
    ids: bool = False
    """The id or name of each object at its visual center."""
    captions: bool = True
    """Whether captions are painted."""


PLAIN = Style()


def paint(
    rgb: np.ndarray,
    mask: np.ndarray,
    style: Style = PLAIN,
    caption: str | None = None,
    names: Mapping[int, str] | None = None,
) -> np.ndarray:
    """Paint the objects of a mask on a frame: color, outline, and a dark rim around it.

    Args:
        rgb: the frame, uint8 RGB [H, W, 3].
        mask: object ids, uint8 [H, W]; the colors are `COLORS`. 0 and 255 (void) are left as they are.
        style: what is painted. Widths grow with the frame: an outline of 2 pixels at a short side of 480.
        caption: text in the lower left corner; see `caption_of`.
        names: of objects by id, shown instead of the ids with `Style.ids`.

    Returns:
        uint8 RGB [H, W, 3], new.

    Raises:
        InputError: frame and mask differ in size, or are not uint8.
    """
    if rgb.dtype != np.uint8 or mask.dtype != np.uint8 or rgb.shape != (*mask.shape, 3):
        raise InputError(
            f"frame is {rgb.dtype} {list(rgb.shape)} and mask {mask.dtype} {list(mask.shape)}; expected uint8 "
            "[H, W, 3] and uint8 [H, W]"
        )
    painted = np.array(rgb, order="C")
    scale = min(mask.shape) / STANDARD_SIDE
    boxes = object_boxes(mask)
    if style.checkerboard:
        board = _checkerboard(*mask.shape, max(2, round(CHECKER * scale)))
        cv2.copyTo(board, where(mask == 0), painted)
    if style.contour_only or not style.checkerboard:
        opacity = 0.0 if style.contour_only else style.opacity
        for id_, box in boxes.items():
            _paint_object(painted, mask, id_, box, opacity, max(NARROWEST, scale))
    if style.ids:
        for id_, box in boxes.items():
            label = str(id_) if names is None else names.get(id_, str(id_))
            sprite = id_sprite(label, tuple(COLORS[id_].tolist()), min(mask.shape))
            paste(painted, sprite, visual_center(mask, id_, box))
    if style.captions and caption:
        paste(painted, caption_sprite(caption, *mask.shape), None)
    return painted


def caption_of(frame: int, confidence: Mapping[int, float] | None = None) -> str:
    """The caption of a frame: its number, and by object id the confidence, from 0 to 1, in percent."""
    parts = [f"{id_}: {100 * value:.0f}%" for id_, value in sorted((confidence or {}).items())]
    return GAP.join([f"frame {frame}", *parts])


def draw_polygon(image: np.ndarray, points: np.ndarray, color: tuple[int, int, int], thickness: int = 1) -> None:
    """Outline a polygon, x and y of its corners [N, 2], in a color with a dark rim on an image, uint8 RGB, in place."""
    whole = np.rint(np.asarray(points, np.float64)).clip(-30_000, 30_000).astype(np.int32)
    for line, width in (((0, 0, 0), thickness + 2), (color, thickness)):
        cv2.polylines(image, [whole], True, line, width, cv2.LINE_AA)


def write_jpeg(path: Path, rgb: np.ndarray) -> None:
    """Write an image, uint8 RGB [H, W, 3], as JPEG, atomically."""
    write_bytes(path, jpeg_bytes(rgb))


def _paint_object(painted: np.ndarray, mask: np.ndarray, id_: int, box: Box, opacity: float, scale: float) -> None:
    """Paint one object in place, within its bounding box and a margin for the rim.

    The level of the blurred object at a pixel tells its distance to the edge, so two tables, by level, are all that is
    needed: the frame's share and the color's. Only pixels of the object and of the background change.
    """
    sigma, size, kept, colored = _tables(round(scale, 3), round(opacity, 3))
    around = tuple(
        slice(max(0, part.start - size), min(whole, part.stop + size))
        for part, whole in zip(box, mask.shape, strict=True)
    )
    ids = mask[around]
    inside = where(ids == id_)
    level = cv2.GaussianBlur(inside, (size, size), sigma, borderType=cv2.BORDER_REPLICATE)
    level = cv2.max(level, inside & np.uint8(round(255 * LEAST_LEVEL)))
    levels = cv2.merge([level] * 3)
    shade = np.rint(colored[:, None] * COLORS[id_]).astype(np.uint8)
    found = cv2.add(cv2.multiply(painted[around], cv2.LUT(levels, kept), scale=1 / 255), cv2.LUT(levels, shade[None]))
    cv2.copyTo(found, where((ids == id_) | (ids == 0)), painted[around])


@lru_cache(maxsize=16)
def _tables(scale: float, opacity: float) -> tuple[float, int, np.ndarray, np.ndarray]:
    """The blur's standard deviation and size, and by its level, 0 to 255, the shares of the frame and of the color.

    The frame's share is uint8 [256], of 255; the color's is float [256]. The rest is the rim's black.
    """
    outline, rim = OUTLINE * scale, RIM * scale
    sigma = BLUR * outline
    size = 2 * int(np.ceil(max(3 * sigma, rim + 1))) + 1
    # The level beside a straight edge, by the distance to it in pixels.
    distances = np.linspace(-size, size, 4096)
    edge = np.cumsum(np.exp(-0.5 * (distances / sigma) ** 2))
    distance = np.interp(np.arange(256) / 255, edge / edge[-1], distances)
    line = np.clip(distance + 0.5, 0, 1)  # within the object, anti-aliased
    color = line * (opacity + (1 - opacity) * np.clip(outline - distance + 0.5, 0, 1))
    dark = RIM_OPACITY * np.clip(rim + distance + 0.5, 0, 1) * (1 - line)
    kept = 1 - color - dark
    kept[0], color[0] = 1, 0
    return sigma, size, np.rint(255 * kept).astype(np.uint8), color


@lru_cache(maxsize=2)
def _checkerboard(height: int, width: int, side: int) -> np.ndarray:
    """A checkerboard, uint8 RGB [H, W, 3], with squares of `side` pixels."""
    odd = (np.arange(height)[:, None] // side + np.arange(width) // side) % 2
    return np.repeat(np.array(CHECKERS)[odd][..., None], 3, axis=2)
