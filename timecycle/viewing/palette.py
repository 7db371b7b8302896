"""Colors of objects in pictures and videos; mask files have the DAVIS palette instead (`timecycle.data.masks`)."""

import colorsys

import numpy as np

CHOSEN = (
    (0, 175, 255), (255, 150, 0), (255, 85, 185), (175, 235, 0), (145, 80, 255),
    (255, 245, 30), (0, 255, 210), (255, 55, 40), (180, 190, 255), (15, 205, 135),
    (255, 160, 210), (105, 130, 245), (210, 15, 210), (115, 235, 255), (250, 175, 170),
    (120, 190, 30), (240, 5, 110), (180, 255, 150), (205, 130, 225), (235, 120, 100),
)  # fmt: skip
"""RGB of the ids 1 to 20.

They began as a list made by hand, and were moved so that the least distance of any two was large in OKLab, also as seen
with protanopia and deuteranopia (Machado et al., 2009), above all among the first. All are bright, and at an opacity of
0.45 change dark, white, gray, brown, red and green visibly.
"""

_GOLDEN = (5**0.5 - 1) / 2  # of a turn: hues that follow each other lie far apart
_SHADES = ((0.85, 1.0), (0.55, 1.0), (0.75, 0.8))  # saturation and value, in turn

CONTRAST = 3.2
"""Least one of lines with their ground."""


def _colors() -> np.ndarray:
    colors = np.zeros((256, 3), np.uint8)
    colors[1 : len(CHOSEN) + 1] = CHOSEN
    for id_ in range(len(CHOSEN) + 1, 256):
        shade = _SHADES[id_ % len(_SHADES)]
        colors[id_] = np.rint(255 * np.array(colorsys.hsv_to_rgb(id_ * _GOLDEN % 1, *shade)))
    return colors


COLORS = _colors()
"""RGB by object id, uint8 [256, 3]: `CHOSEN`, then generated ones. Entries 0 and 255 are never painted."""
COLORS.setflags(write=False)


def line_colors(id_: int) -> tuple[str, str]:
    """An object's color for lines on a white and on a nearly black ground: two CSS colors of its hue.

    Their contrast with the ground is at least 3, as WCAG 2.1 asks of graphics; those of `COLORS` need not have it.
    """
    color = COLORS[id_] / 255
    dark = light = color
    while _luminance(dark) > 1.05 / CONTRAST - 0.05:
        dark = 0.97 * dark
    while _luminance(light) < CONTRAST * 0.057 - 0.05:
        light = light + 0.03 * (1 - light)
    return _css(dark), _css(light)


def _luminance(color: np.ndarray) -> float:
    """Relative luminance of an sRGB color, float [3] from 0 to 1."""
    linear = np.where(color <= 0.04045, color / 12.92, ((color + 0.055) / 1.055) ** 2.4)
    return float(linear @ (0.2126, 0.7152, 0.0722))


def _css(color: np.ndarray) -> str:
    return "#" + "".join(f"{round(255 * value):02x}" for value in color.tolist())
