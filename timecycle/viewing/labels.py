"""Small texts on frames: ids of objects, and captions. Does not import torch."""

from functools import lru_cache

import cv2
import numpy as np
from PIL import Image, ImageDraw, ImageFont

from timecycle.viewing.regions import Box, where

SMALLEST = 7  # pixels: texts are not painted in frames that would need a smaller font
TEXT_SHARE = 0.031  # of the frame's short side: height of the font
LEAST_TEXT = 11  # pixels, in frames with room for it
OVERSAMPLED = 3  # sprites are drawn this much larger, then reduced
DARK = (16, 16, 18)
LIGHT = (255, 255, 255)
CAPTION_OPACITY = 0.62  # of the plate behind a caption
HIGHEST_CAPTION = 0.4  # of the frame's height
GAP = "   "  # between the parts of a caption
NEARLY = 0.92  # of the largest distance
SEARCHED = 160  # pixels of an object's longer side in which its visual center is searched

Color = tuple[int, int, int]


def text_size(short_side: int) -> int:
    """Height of the font in pixels in a frame whose shorter side has this many pixels."""
    return max(LEAST_TEXT, round(TEXT_SHARE * short_side))


@lru_cache(maxsize=1024)
def id_sprite(text: str, color: Color, short_side: int) -> np.ndarray:
    """A label for an object: dark text on a pill of the object's color with a dark rim. uint8 RGBA [h, w, 4]."""
    size = text_size(short_side)
    return _pill(text, size, fill=(*color, 255), ink=DARK, rim=max(1.25, 0.11 * size))


def caption_sprite(text: str, height: int, width: int) -> np.ndarray | None:
    """A caption for a frame [height, width]: light text on a dark, translucent plate. uint8 RGBA [h, w, 4].

    Where it is too wide, it is broken at its gaps of several blanks, then the font shrinks; None where it would be too
    small to be read.
    """
    for size in range(text_size(min(height, width)), SMALLEST - 1, -1):
        sprite = _pill(_wrapped(text, size, width - 2 * size), size, (*DARK, round(255 * CAPTION_OPACITY)), LIGHT, 0)
        margin = _margin(height, width)
        if sprite.shape[1] + 2 * margin <= width and sprite.shape[0] + 2 * margin <= height * HIGHEST_CAPTION:
            return sprite
    return None


def line_sprite(text: str, size: int, width: int | None = None) -> np.ndarray:
    """A line of light text on an opaque dark ground, `size` pixels high. uint8 RGBA [h, w, 4].

    Where it is wider than `width` pixels, the font shrinks, to `SMALLEST` at least.
    """
    sprite = _pill(text, size, (*DARK, 255), LIGHT, 0)
    while width is not None and sprite.shape[1] > width and size > SMALLEST:
        size -= 1
        sprite = _pill(text, size, (*DARK, 255), LIGHT, 0)
    return sprite


def _wrapped(text: str, size: int, width: int) -> str:
    """A text broken into lines of at most `width` pixels where it has gaps of three blanks."""
    letters = font(size * OVERSAMPLED)
    lines = [""]
    for part in text.split(GAP):
        longer = f"{lines[-1]}{GAP}{part}" if lines[-1] else part
        if letters.getlength(longer) <= width * OVERSAMPLED or not lines[-1]:
            lines[-1] = longer
        else:
            lines.append(part)
    return "\n".join(lines)


def paste(image: np.ndarray, sprite: np.ndarray | None, center: tuple[int, int] | None) -> None:
    """Blend a sprite, uint8 RGBA [h, w, 4], over an image, uint8 RGB [H, W, 3], in place.

    center: row and column; None is the lower left corner. Sprites are moved into the image, or cut if larger.
    """
    if sprite is None:
        return
    (height, width), (rows, columns) = sprite.shape[:2], image.shape[:2]
    margin = _margin(rows, columns)
    top, left = rows - height - margin, margin
    if center is not None:
        top, left = center[0] - height // 2, center[1] - width // 2
    top, left = max(0, min(top, rows - height)), max(0, min(left, columns - width))
    place = image[top : top + height, left : left + width]
    part = sprite[: place.shape[0], : place.shape[1]]
    alpha = part[..., 3:].astype(np.uint16)
    place[:] = (place * (255 - alpha) + part[..., :3] * alpha + 127) // 255


def visual_center(mask: np.ndarray, id_: int, box: Box) -> tuple[int, int]:
    """Row and column of the object's visual center, in whole pixels.

    Of the points of nearly the largest distance to the object's edge, at reduced resolution, it is the one nearest to
    the centroid, so that it does not jump along a bar from frame to frame.
    """
    inside = where(mask[box] == id_)
    factor = min(1.0, SEARCHED / max(inside.shape))
    small = inside
    if factor < 1:
        reduced = [max(1, round(factor * n)) for n in inside.shape[::-1]]
        small = cv2.resize(inside, reduced, interpolation=cv2.INTER_AREA)
        small = where(small > min(127, int(small.max()) - 1))
    # The box's edge counts as the object's.
    depth = cv2.distanceTransform(cv2.copyMakeBorder(small, 1, 1, 1, 1, cv2.BORDER_CONSTANT), cv2.DIST_L2, 5)
    found = np.argwhere(depth >= NEARLY * depth.max()) - 1
    centroid = np.argwhere(small).mean(axis=0)
    row, column = found[np.square(found - centroid).sum(axis=1).argmin()]
    at = (
        part.start + min(size - 1, int((place + 0.5) * size / reduced_size))
        for part, place, size, reduced_size in zip(box, (row, column), inside.shape, small.shape, strict=True)
    )
    return next(at), next(at)


def _margin(height: int, width: int) -> int:
    """Pixels between a caption and the frame's edges."""
    return text_size(min(height, width)) // 2


@lru_cache(maxsize=32)
def font(size: int) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    """The font of all texts on pictures, `size` pixels high."""
    return ImageFont.load_default(size)


@lru_cache(maxsize=256)
def _pill(text: str, size: int, fill: tuple[int, int, int, int], ink: Color, rim: float) -> np.ndarray:
    """A text, `size` pixels high, on a plate with round ends. uint8 RGBA [h, w, 4]."""
    letters = font(size * OVERSAMPLED)
    left, top, right, bottom = ImageDraw.Draw(Image.new("L", (1, 1))).multiline_textbbox((0, 0), text, letters)
    lines = text.count("\n") + 1
    high = round((1.0 * size if lines == 1 else (bottom - top) / OVERSAMPLED + 0.3 * size) + 0.5 * size + 2 * rim)
    wide = max(high, round((right - left) / OVERSAMPLED + 0.9 * size + 2 * rim))
    image = Image.new("RGBA", (wide * OVERSAMPLED, high * OVERSAMPLED))
    draw = ImageDraw.Draw(image)
    radius = min(0.75 * size, high / 2) * OVERSAMPLED
    outer = (0, 0, image.width - 1, image.height - 1)
    draw.rounded_rectangle(outer, radius, (*DARK, 255) if rim else fill)
    if rim:
        edge = rim * OVERSAMPLED
        draw.rounded_rectangle((edge, edge, image.width - 1 - edge, image.height - 1 - edge), radius - edge, fill)
    at = ((image.width - left - right) / 2, (image.height - top - bottom) / 2)
    if lines == 1:  # digits and capitals in the middle, whatever the letters' descenders
        _, high_top, _, high_bottom = draw.textbbox((0, 0), "8", letters)
        at = (at[0], (image.height - high_top - high_bottom) / 2)
    draw.multiline_text(at, text, (*ink, 255), letters)
    return np.asarray(image.resize((wide, high), Image.Resampling.BOX))
