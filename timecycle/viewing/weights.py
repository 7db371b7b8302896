"""One picture of where the label of a pixel comes from: weights over context frames. Does not import torch."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
from PIL import Image, ImageDraw

from timecycle.viewing.labels import DARK, LIGHT, font
from timecycle.viewing.overlays import Style, paint
from timecycle.viewing.palette import COLORS
from timecycle.viewing.panels import HEAT

WIDTH, MARGIN, GAP = 1280, 24, 12  # pixels
QUERY_WIDTH = 620
FEW, COLUMNS, MANY_COLUMNS = 10, 5, 6  # up to so many context frames, larger ones
FAINT = 0.005  # context frames with a smaller share of the weight are dimmed
LEAST_RING = 0.02  # of the largest weight: lighter positions get no ring
RING = 0.75  # of a position's shorter side: radius of the ring of the heaviest one; the lightest is half as large
RINGS = (4.0, 9.0)  # pixels: the least and the most that this may be
HOT = 0.6  # of the largest heat: positions with this much are in the window
AROUND = 4  # feature positions between what the window must hold and its edge
LEAST_WINDOW = 0.25  # of the frame's width
BACKGROUND, TEXT, QUIET, EDGE = (18, 23, 31), (236, 240, 245), (158, 168, 181), (70, 78, 90)
LARGE, NORMAL, SMALL = 24, 16, 14  # pixels: heights of letters
LEAST_HEAT = 0.3  # opacity of the color map where heat is 0, within the neighborhood

Window = tuple[float, float, float, float]
"""Left, top, right and bottom of a part of the frame, in pixels."""

Tile = tuple[np.ndarray, str, float | None]
"""A small picture, its name, and its share of the weight, if any."""


@dataclass(frozen=True, eq=False)
class ContextView:
    """A context frame and the weights in it."""

    name: str
    share: float
    """Of the weight, from 0 to 1."""
    rgb: np.ndarray
    """uint8 [H, W, 3]."""
    mask: np.ndarray
    """uint8 [H, W] ids: its labels."""
    heat: np.ndarray
    """float [h, w]: softmax weights on the feature grid; 0 where nothing may be seen."""
    points: np.ndarray
    """float [n, 2]: x and y of the kept positions, in pixels of the frame."""
    weights: np.ndarray
    """float [n]."""
    ids: np.ndarray
    """[n]: the strongest label of each."""


@dataclass(frozen=True, eq=False)
class QueryView:
    """The frame with the pixel."""

    rgb: np.ndarray
    """uint8 [H, W, 3]."""
    mask: np.ndarray
    """uint8 [H, W] ids: the result."""
    at: tuple[float, float]
    """x and y of the pixel."""
    cell: Window
    """The feature position, in pixels of the frame."""


def weights_picture(
    title: str,
    lines: Sequence[str],
    query: QueryView,
    shares: Sequence[tuple[int, str, float]],
    context: Sequence[ContextView],
    colors: Sequence[tuple[str, np.ndarray]],
    explained: float,
) -> np.ndarray:
    """The picture: the frame with the pixel, its labels' shares, the context frames, and features as colors.

    Args:
        title: first line.
        lines: facts, a line each.
        query: the frame with the pixel.
        shares: id, name and share of each label, from 0 to 1.
        context: the context frames, in order.
        colors: names of some frames, first the one with the pixel, and their features as colors, uint8 RGB [h, w, 3].
        explained: share of the features' variance that their colors show.

    Returns uint8 RGB [H, 1280, 3].
    """
    largest = max((float(view.heat.max()) for view in context), default=0.0) or 1.0
    heaviest = max((float(view.weights.max(initial=0)) for view in context), default=0.0) or 1.0
    window = window_of(query, context, largest, heaviest)
    columns = COLUMNS if len(context) < FEW else MANY_COLUMNS
    wide = (WIDTH - 2 * MARGIN - (columns - 1) * GAP) // columns
    size = (wide, max(1, round(wide * query.mask.shape[0] / query.mask.shape[1])))
    tiles: list[Tile] = [(_query_tile(query, window, size), "this frame", None)]
    tiles += [(thumbnail(view, window, size, largest, heaviest), view.name, view.share) for view in context]
    parts = [
        _head(title, lines, query, shares, window, largest),
        _section("The window, and the same part of each context frame with its share of the weight", tiles, columns),
        _colors(query, colors, window, size, columns, explained),
    ]
    return np.concatenate(parts)


def heat_colors(heat: np.ndarray, largest: float) -> np.ndarray:
    """Heat [...] from 0 to `largest` as uint8 RGB [..., 3], evenly spaced to the eye."""
    levels = np.rint(255 * (heat / largest).clip(0, 1)).astype(np.uint8)
    colors = cv2.applyColorMap(np.arange(256, dtype=np.uint8)[:, None], HEAT).reshape(256, 3)[:, ::-1]
    return np.asarray(colors[levels])


def window_of(query: QueryView, context: Sequence[ContextView], largest: float, heaviest: float) -> Window:
    """The part of the frames that is shown: where kept positions or heat matter, in the frame's proportions."""
    height, width = query.mask.shape
    wide, high = query.cell[2] - query.cell[0], query.cell[3] - query.cell[1]
    corners = [np.array(query.cell).reshape(2, 2)]
    for view in context:
        corners.append(view.points[view.weights >= LEAST_RING * heaviest])
        corners.append((np.argwhere(view.heat >= HOT * largest)[:, ::-1] + 0.5) * (wide, high))
    found = np.concatenate(corners)
    margin = AROUND * np.array([wide, high])
    (left, top), (right, bottom) = found.min(axis=0) - margin, found.max(axis=0) + margin
    scale = min(1.0, max(LEAST_WINDOW, (right - left) / width, (bottom - top) / height))
    x = min(max(0.0, (left + right - scale * width) / 2), width * (1 - scale))
    y = min(max(0.0, (top + bottom - scale * height) / 2), height * (1 - scale))
    return x, y, x + scale * width, y + scale * height


def _head(
    title: str,
    lines: Sequence[str],
    query: QueryView,
    shares: Sequence[tuple[int, str, float]],
    window: Window,
    largest: float,
) -> np.ndarray:
    """Title, the frame with the pixel, and beside it the labels' shares, the legend and the facts."""
    height, width = query.mask.shape
    scale = QUERY_WIDTH / width
    high = round(height * scale)
    frame = cv2.resize(paint(query.rgb, query.mask), (QUERY_WIDTH, high), interpolation=cv2.INTER_AREA)
    _box(frame, tuple(side * scale for side in window), LIGHT, 1)
    _mark(frame, query, (0.0, 0.0), scale)
    top = MARGIN + LARGE + 16
    written = [part for line in lines for part in _wrapped(line, WIDTH - 2 * MARGIN - QUERY_WIDTH - 2 * GAP)]
    below = top + 26 + len(shares) * 30 + 20 + 100 + len(written) * 24
    image = Image.new("RGB", (WIDTH, max(top + high, below) + 8), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, MARGIN), title, TEXT, font(LARGE))
    image.paste(Image.fromarray(frame), (MARGIN, top))
    left, right, y = MARGIN + QUERY_WIDTH + 2 * GAP, WIDTH - MARGIN, top
    draw.text((left, y), "Its label is made of", TEXT, font(NORMAL))
    y += 28
    for id_, name, share in shares:
        draw.ellipse((left, y + 2, left + 14, y + 16), _color(id_))
        draw.text((left + 24, y), name, TEXT, font(NORMAL))
        begin, end = left + 150, right - 80
        draw.rectangle((begin, y + 2, end, y + 16), EDGE)
        draw.rectangle((begin, y + 2, begin + round((end - begin) * min(1.0, share)), y + 16), _color(id_))
        draw.text((right, y), f"{100 * share:.1f} %", TEXT, font(NORMAL), "ra")
        y += 30
    y = _legend(image, left, right, y + 12, largest) + 12
    for line in written:
        draw.text((left, y), line, QUIET, font(SMALL))
        y += 24
    return np.array(image)


def _wrapped(text: str, width: int) -> list[str]:
    """A text in lines of at most so many pixels, broken at blanks."""
    lines: list[str] = []
    for word in text.split(" "):
        if lines and font(SMALL).getlength(f"{lines[-1]} {word}") <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(word)
    return lines


def _legend(image: Image.Image, left: int, right: int, y: int, largest: float) -> int:
    """The color bar with its numbers and what a ring means; returns where it ends."""
    draw = ImageDraw.Draw(image)
    draw.text((left, y), "Heat: share of the softmax at a position, before positions are selected", TEXT, font(SMALL))
    wide = right - left
    bar = heat_colors(np.linspace(0, 1, wide)[None].repeat(12, 0), 1.0)
    image.paste(Image.fromarray(bar), (left, y + 24))
    for share in (0.0, 0.25, 0.5, 0.75, 1.0):
        anchor = {0.0: "la", 1.0: "ra"}.get(share, "ma")
        draw.text((left + share * wide, y + 40), f"{100 * share * largest:.2g} %", QUIET, font(SMALL), anchor)
    draw.text((left, y + 66), "Rings: kept positions, by label; the larger, the heavier", TEXT, font(SMALL))
    return y + 90


def _section(title: str, pictures: Sequence[Tile], columns: int) -> np.ndarray:
    """A title and pictures of one size in rows, each with its name and share of the weight below it."""
    high, wide = pictures[0][0].shape[:2] if pictures else (0, 0)
    step = high + SMALL + 16
    rows = -(-len(pictures) // columns)
    top = NORMAL + 26
    image = Image.new("RGB", (WIDTH, top + rows * step + 4), BACKGROUND)
    draw = ImageDraw.Draw(image)
    draw.text((MARGIN, 14), title, TEXT, font(NORMAL))
    for number, (picture, name, share) in enumerate(pictures):
        x, y = MARGIN + number % columns * (wide + GAP), top + number // columns * step
        image.paste(Image.fromarray(picture), (x, y))
        faint = share is not None and share < FAINT
        draw.text((x, y + high + 4), name, QUIET, font(SMALL))
        if share is not None:
            draw.text((x + wide, y + high + 4), f"{100 * share:.1f} %", QUIET if faint else TEXT, font(SMALL), "ra")
    return np.array(image)


def _query_tile(query: QueryView, window: Window, size: tuple[int, int]) -> np.ndarray:
    """The window of the frame with the pixel, its result painted and the feature position marked."""
    rgb, mask = _cut(query.rgb, window, size, cv2.INTER_AREA), _cut(query.mask, window, size, cv2.INTER_NEAREST)
    picture = paint(rgb, mask)
    _mark(picture, query, window[:2], size[0] / (window[2] - window[0]))
    return picture


def thumbnail(view: ContextView, window: Window, size: tuple[int, int], largest: float, heaviest: float) -> np.ndarray:
    """The window of a context frame in gray, its objects' outlines, heat, and rings; dimmed if it weighs nothing."""
    gray = cv2.cvtColor(_cut(view.rgb, window, size, cv2.INTER_AREA), cv2.COLOR_RGB2GRAY)[..., None]
    heat = _on_window(view.heat.astype(np.float32), view.mask.shape, window, size, cv2.INTER_LINEAR)
    seen = _on_window((view.heat > 0).astype(np.float32), view.mask.shape, window, size, cv2.INTER_NEAREST)
    opacity = (seen * (LEAST_HEAT + (1 - LEAST_HEAT) * (heat / largest).clip(0, 1)))[..., None]
    picture = np.rint(gray * (1 - opacity) + heat_colors(heat, largest) * opacity).astype(np.uint8)
    picture = paint(picture, _cut(view.mask, window, size, cv2.INTER_NEAREST), Style(contour_only=True))
    if view.share < FAINT:
        picture = (picture * 0.5).astype(np.uint8)
    scale = size[0] / (window[2] - window[0])
    position = scale * min(view.mask.shape[0] / view.heat.shape[0], view.mask.shape[1] / view.heat.shape[1])
    largest_ring = min(max(RINGS[0], RING * position), RINGS[1])
    for point, weight, id_ in sorted(zip(view.points, view.weights, view.ids, strict=True), key=lambda one: one[1]):
        if weight >= LEAST_RING * heaviest:
            radius = largest_ring * (0.5 + 0.5 * (weight / heaviest) ** 0.5)
            _ring(picture, (point + 0.5 - np.array(window[:2])) * scale, radius, _color(int(id_)))
    return picture


def _colors(
    query: QueryView,
    colors: Sequence[tuple[str, np.ndarray]],
    window: Window,
    size: tuple[int, int],
    columns: int,
    explained: float,
) -> np.ndarray:
    """Features as colors of the frame with the pixel, which is marked, and of some context frames."""
    pictures: list[Tile] = []
    for name, values in colors:
        picture = _on_window(values, query.mask.shape, window, size, cv2.INTER_NEAREST)
        if not pictures:
            _mark(picture, query, window[:2], size[0] / (window[2] - window[0]))
        pictures.append((picture, name, None))
    title = "Features as colors: their first three principal components as red, green and blue"
    return _section(f"{title} ({100 * explained:.0f} % of the variance)", pictures, columns)


def _cut(image: np.ndarray, window: Window, size: tuple[int, int], interpolation: int) -> np.ndarray:
    """A window of an image, resized to width and height."""
    left, top, right, bottom = (round(side) for side in window)
    return cv2.resize(image[top:bottom, left:right], size, interpolation=interpolation)


def _on_window(
    grid: np.ndarray, frame: tuple[int, ...], window: Window, size: tuple[int, int], interpolation: int
) -> np.ndarray:
    """Values on the feature grid [h, w, ...] in a window of the frame, resized to width and height."""
    (width, height), (rows, columns) = size, grid.shape[:2]
    x = window[0] + (np.arange(width) + 0.5) * (window[2] - window[0]) / width
    y = window[1] + (np.arange(height) + 0.5) * (window[3] - window[1]) / height
    map_x, map_y = np.meshgrid(x * columns / frame[1] - 0.5, y * rows / frame[0] - 0.5)
    return cv2.remap(
        grid, map_x.astype(np.float32), map_y.astype(np.float32), interpolation, borderMode=cv2.BORDER_REPLICATE
    )


def _color(id_: int) -> tuple[int, int, int]:
    """The color of a label; the background's is light gray."""
    red, green, blue = COLORS[id_].tolist() if id_ else (225, 228, 232)
    return red, green, blue


def _ring(image: np.ndarray, center: np.ndarray, radius: float, color: tuple[int, int, int]) -> None:
    """Draw a ring with a dark rim around x and y on an image, uint8 RGB, in place."""
    at, shift = tuple(np.rint(center * 16).astype(int).tolist()), 4
    for line, width in ((DARK, 3), (color, 1)):
        cv2.circle(image, at, round(radius * 16), line, width, cv2.LINE_AA, shift)


def _mark(image: np.ndarray, query: QueryView, origin: tuple[float, float], scale: float) -> None:
    """Mark the feature position and, larger, where it is, on an image that begins at `origin`, in place."""
    corners = (np.array(query.cell).reshape(2, 2) - np.array(origin)) * scale
    _box(image, tuple(corners.ravel()), LIGHT, 1)
    _ring(image, corners.mean(axis=0), float(np.linalg.norm(corners[1] - corners[0])) / 2 + 6, LIGHT)


def _box(image: np.ndarray, box: tuple[float, ...], color: tuple[int, int, int], width: int) -> None:
    """Outline a rectangle with a dark rim on an image, uint8 RGB, in place."""
    left, top, right, bottom = (round(side) for side in box)
    for line, thick in ((DARK, width + 2), (color, width)):
        cv2.rectangle(image, (left, top), (right - 1, bottom - 1), line, thick)
