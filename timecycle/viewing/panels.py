"""Pictures side by side with titles, color bars and legends beside them, not over them. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from timecycle.viewing.labels import DARK, Color, line_sprite, paste

GAP = 4  # pixels after a panel
TEXT_SHARE = 0.068  # of the panels' height: height of the font
SMALLEST, LARGEST = 11, 32  # pixels of the font, where the text fits
HEAT = cv2.COLORMAP_INFERNO  # perceptually uniform, dark to light
HEAT_OPACITY = 0.65
GRAY = 128  # of the picture under a color bar's colors


@dataclass(frozen=True)
class Panel:
    """A picture with a title above it."""

    image: np.ndarray
    """uint8 RGB [H, W, 3]."""
    title: str
    top: float | None = None
    """For a heat map, the weight of the brightest color; a color bar from 0 to it is put below the picture."""


def heat(image: np.ndarray, weights: np.ndarray, title: str) -> Panel:
    """Weights >= 0, float [h, w], as colors over a picture, uint8 RGB [H, W, 3], which is shown in gray.

    The colors are scaled to the largest weight.
    """
    top = float(weights.max())
    levels = np.rint(weights / max(top, 1e-12) * 255).astype(np.uint8)
    large = cv2.resize(levels, image.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return Panel(_over(cv2.cvtColor(image, cv2.COLOR_RGB2GRAY), large), title, top)


def row(panels: Sequence[Panel | None]) -> np.ndarray:
    """The panels from left to right, each followed by `GAP` dark pixels; None is left empty. uint8 RGB [H, W, 3].

    A title's line is above each picture, and, where one has a color bar, another line below it.
    """
    shown = [panel for panel in panels if panel]
    height = max(panel.image.shape[0] for panel in shown)
    size = _font_size(height)
    bars = any(panel.top is not None for panel in shown)
    columns = []
    for panel in panels:
        width = (panel or shown[0]).image.shape[1]
        column = _blank((_line(size) * (2 if bars else 1)) + height, width + GAP)
        columns.append(column)
        if panel is None:
            continue
        _write(column[: _line(size), :width], panel.title, size)
        column[_line(size) : _line(size) + panel.image.shape[0], :width] = panel.image
        if panel.top is not None:
            _bar(column[_line(size) + height :, :width], panel.top, size)
    return np.concatenate(columns, axis=1)


def legend(entries: Sequence[tuple[Color, str]], width: int, height: int) -> np.ndarray:
    """Colors and what they mean, in lines of this width, for panels of this height. uint8 RGB [h, width, 3]."""
    size = _font_size(height)
    line, box = _line(size), size
    places: list[tuple[int, int]] = []
    x = y = 0
    sprites = [line_sprite(text, size) for _, text in entries]
    for sprite in sprites:
        wide = box + sprite.shape[1] + size // 2
        if x and x + wide > width:
            x, y = 0, y + line
        places.append((y, x))
        x += wide
    drawn = _blank(y + line, width)
    for (color, _), sprite, (top, left) in zip(entries, sprites, places, strict=True):
        at = top + (line - box) // 2
        drawn[at : at + box, left + GAP : left + GAP + box][:, : max(0, width - left - GAP)] = color
        space = drawn[top : top + line, left + GAP + box :]
        if space.shape[1]:
            paste(space, sprite, (line // 2, sprite.shape[1] // 2))
    return drawn


def stacked(parts: Sequence[np.ndarray]) -> np.ndarray:
    """Pictures, uint8 RGB, from top to bottom, with dark pixels at the right of narrower ones."""
    width = max(part.shape[1] for part in parts)
    wide = [_blank(part.shape[0], width) for part in parts]
    for space, part in zip(wide, parts, strict=True):
        space[:, : part.shape[1]] = part
    return np.concatenate(wide)


def _over(gray: np.ndarray, levels: np.ndarray) -> np.ndarray:
    """Levels, uint8 [H, W], in colors over a gray picture, uint8 [H, W]."""
    colors = cv2.cvtColor(cv2.applyColorMap(levels, HEAT), cv2.COLOR_BGR2RGB)
    return cv2.addWeighted(cv2.merge([gray] * 3), 1 - HEAT_OPACITY, colors, HEAT_OPACITY, 0)


def _bar(space: np.ndarray, top: float, size: int) -> None:
    """Draw a color bar between its numbers, 0 and `top`, in place."""
    height, width = space.shape[:2]
    low, high = (line_sprite(text, size, width // 2) for text in ("0", f"{top:.2g}"))
    left, right = low.shape[1], width - high.shape[1]
    paste(space, low, (height // 2, left // 2))
    paste(space, high, (height // 2, right + high.shape[1] // 2))
    if right > left:
        thick = max(3, size // 2)
        levels = np.broadcast_to(np.linspace(0, 255, right - left).astype(np.uint8), (thick, right - left))
        at = (height - thick) // 2
        space[at : at + thick, left:right] = _over(np.full(levels.shape, GRAY, np.uint8), np.ascontiguousarray(levels))


def _write(space: np.ndarray, text: str, size: int) -> None:
    """Write a line at the left of a space, smaller if it is too wide, in place."""
    sprite = line_sprite(text, size, space.shape[1])
    paste(space, sprite, (space.shape[0] // 2, sprite.shape[1] // 2))


def _font_size(height: int) -> int:
    return min(LARGEST, max(SMALLEST, round(TEXT_SHARE * height)))


def _line(size: int) -> int:
    """Height of a line of text in pixels."""
    return round(1.6 * size)


def _blank(height: int, width: int) -> np.ndarray:
    return np.full((height, width, 3), DARK, np.uint8)
