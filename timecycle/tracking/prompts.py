"""From a box or points on one frame to the mask of an object.

An object's share of every cell of the frame is estimated from cues (`timecycle.tracking.cues`), then OpenCV's grabCut
(Rother et al., 2004) draws its edge. Results are deterministic.
"""

import math
from collections.abc import Sequence

import cv2
import numpy as np
from torch import Tensor

from timecycle.errors import InputError
from timecycle.propagation.frames import frame_size
from timecycle.propagation.refine import GuidedFilter
from timecycle.tracking.cues import Box, Cells, box_cues, cell_neighbors, walked

SHORT_SIDE = 480
"""Larger frames are worked on at this short side."""
MARGIN = 0.5  # of the window around a box, in sizes of the box
CUT_CELLS = 90_000  # most pixels that grabCut works on
SURE = 0.9  # share from which a pixel is object for certain, and 1 - SURE background
ROUNDS = 2  # of grabCut
TIGHT = 0.85
"""A box touches its object on all sides (Lempitsky et al., Image Segmentation with a Bounding Box Prior, ICCV 2009). A
mask that spans less of its width or height gives way to one that trusts the cues more, unless that doubles it."""
LENIENT, LENIENT_SURE = math.log(0.35 / 0.65), 0.85  # log-odds that count as even then, and SURE
LEAST_SHARE = 0.01  # of the box; a mask of less area is specks, and no object is found
WITHIN, MOVING_PART = 0.95, 1 / 3
"""A mask of less than this part of the one that is found without motion, and within it, is of an object that moves only
in part, such as the legs of an animal that the camera follows: then the other one is taken."""
GUIDE_RADIUS, GUIDE_EPS = 8, 1e-3
LEAST_PART = 0.01  # of the largest part; smaller ones are dropped
POINT_CELLS = 8000
POINT_REACH = 0.2  # of the frame's size
POINT_STEPS = 1000
POINT_RADIUS = 0.01  # of the frame's size; what is so near a point is labeled as it

WITH_MOTION = {
    "near": 1.131, "near rank": 1.829, "wide": -0.721, "wide rank": 0.736, "color": 0.409, "local color": -0.053,
    "local color rank": 0.758, "motion": 0.73, "motion rank": 5.767, "": -9.929,
}  # fmt: skip
"""Weight of each cue in the log-odds of being object, and under "" the constant: logistic regression over the cells of
three frames of each of eleven DAVIS sequences, by `python -m benchmarks.prompts --fit`."""
WITH_AFFINITY = {
    "near": 1.589, "near rank": 1.126, "wide": 0.087, "wide rank": 0.309, "color": -0.064, "local color": -0.036,
    "local color rank": 0.476, "affinity": 0.283, "affinity rank": 1.987, "": -3.145,
}  # fmt: skip
"""Without another frame."""
WITH_COLOR = {
    "near": 1.583, "near rank": 1.47, "wide": 0.229, "wide rank": 0.548, "color": 0.053, "local color": 0.182,
    "local color rank": 0.797, "": -2.748,
}  # fmt: skip
"""With neither another frame nor features."""


def mask_from_box(
    rgb: np.ndarray,
    box: Sequence[float],
    features: Tensor | None = None,
    other: np.ndarray | None = None,
) -> np.ndarray:
    """The mask, bool [H, W], of the object in a box.

    Args:
        rgb: the frame, uint8 [H, W, 3].
        box: (x, y, width, height) in pixels; what is outside the frame is cut off.
        features: of the frame, [D, h, w]; used if nothing in the box moves, or there is no other frame.
        other: a frame just before or after this one, of the same size; motion is the strongest cue.

    The mask lies in the box and is never empty: if no object is found, it is the ellipse in the box.
    Raises InputError if the box has no size or lies outside the frame.
    """
    full = _pixels(box, rgb.shape[:2])
    small, scale = _reduced(rgb)
    bounds = _scaled(full, scale, small.shape[:2])
    window = window_of(bounds, small.shape[:2])
    if window == bounds or min(bounds[2] - bounds[0], bounds[3] - bounds[1]) < 4:
        # No background is known, or there is nothing to cut.
        return _ellipse(full, rgb.shape[:2])
    other = None if other is None or other.shape != rgb.shape else _reduced(other)[0]
    cells = Cells.of(small, window)
    cues = box_cues(small, bounds, cells, features, other)
    mask = _mask_of_cues(small, bounds, cells, cues)
    if "motion" in cues:
        still = _mask_of_cues(small, bounds, cells, {name: cue for name, cue in cues.items() if "motion" not in name})
        moving, both = np.count_nonzero(mask), np.count_nonzero(mask & still)
        if both >= WITHIN * moving and moving < MOVING_PART * np.count_nonzero(still):
            mask = still
    if np.count_nonzero(mask) < LEAST_SHARE * (bounds[2] - bounds[0]) * (bounds[3] - bounds[1]):
        mask = np.zeros_like(mask)
    return _enlarged(_without_specks(mask), full, rgb.shape[:2])


def _mask_of_cues(rgb: np.ndarray, box: Box, cells: Cells, cues: dict[str, np.ndarray]) -> np.ndarray:
    """The mask, bool [H, W], of the object in a box, from cues of every cell, float32 [h, w]."""
    weights = WITH_MOTION if "motion" in cues else WITH_AFFINITY if "affinity" in cues else WITH_COLOR
    odds = sum(weight * cues[name] for name, weight in weights.items() if name) + weights[""]
    inside = cells.inside(box)
    mask = _cut(rgb, cells.window, np.where(inside, 1 / (1 + np.exp(-odds)), 0.0))
    if _span(mask, box) < TIGHT:
        trusted = np.where(inside, 1 / (1 + np.exp(LENIENT - odds)), 0.0)
        larger = _cut(rgb, cells.window, trusted, LENIENT_SURE, with_share=True)
        if _span(larger, box) > _span(mask, box) and 2 * np.count_nonzero(mask) > np.count_nonzero(larger):
            mask = larger
    return mask


def mask_from_points(
    rgb: np.ndarray,
    positive: Sequence[Sequence[float]],
    negative: Sequence[Sequence[float]] = (),
    features: Tensor | None = None,
) -> np.ndarray:
    """The mask, bool [H, W], of the object under points: the parts that contain them.

    Args:
        rgb: the frame, uint8 [H, W, 3].
        positive: (x, y) in pixels on the object, at least one.
        negative: (x, y) on the background, as is the border of the frame where no positive point is near.
        features: of the frame, [D, h, w]; joined to the colors.

    Positive points are always in the mask, negative ones never.
    Raises InputError if there is no positive point, a point lies outside the frame, or one is positive and negative.
    """
    size = rgb.shape[:2]
    on, off = _checked(positive, size), _checked(negative, size)
    if not on:
        raise InputError("no point is on the object; expected at least one")
    if both := sorted(set(on) & set(off)):
        raise InputError(f"the point {both[0]} is given on the object and on the background; expected one of them")
    small, scale = _reduced(rgb)
    height, width = small.shape[:2]
    radius = max(1.0, POINT_RADIUS * math.sqrt(height * width))
    cells = Cells.of(small, (0, 0, width, height), POINT_CELLS)
    near = [_near(cells, [((x + 0.5) * scale, (y + 0.5) * scale) for x, y in points], radius) for points in (on, off)]
    ours = near[0] & ~near[1]
    border = np.ones(ours.shape, bool)
    border[1:-1, 1:-1] = False
    known = near[0] | near[1] | (border & ~near[0])
    neighbors = cell_neighbors(cells, POINT_REACH * math.sqrt(height * width), features)
    share = walked(neighbors, np.where(known, ours, 0.5), known, POINT_STEPS)
    mask = _cut(small, (0, 0, width, height), share)
    large = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    return _parts_of_points(large, on, off, max(1, round(radius / scale)))


def window_of(box: Box, size: tuple[int, int]) -> Box:
    """The part of a frame of height and width `size` in which a box is looked at."""
    left, top, right, bottom = box
    margin = int(MARGIN * math.sqrt((right - left) * (bottom - top))) + 8
    return max(0, left - margin), max(0, top - margin), min(size[1], right + margin), min(size[0], bottom + margin)


def _pixels(box: Sequence[float], size: tuple[int, int]) -> Box:
    """A box (x, y, width, height) as left, top, right and bottom, cut off at the frame's border."""
    x, y, width, height = (float(n) for n in box)
    what = f"the box {x:g},{y:g},{width:g},{height:g}"
    if not (math.isfinite(x + y + width + height) and width > 0 and height > 0):
        raise InputError(f"{what} has no size; expected x,y,w,h in pixels with a positive width and height")
    left, top = max(0, round(x)), max(0, round(y))
    right, bottom = min(size[1], max(round(x + width), left + 1)), min(size[0], max(round(y + height), top + 1))
    if x + width <= 0 or y + height <= 0 or left >= right or top >= bottom:
        raise InputError(f"{what} lies outside the frame; expected a part of its {size[1]} x {size[0]} pixels")
    return left, top, right, bottom


def _reduced(rgb: np.ndarray) -> tuple[np.ndarray, float]:
    """A frame with a short side of at most SHORT_SIDE, and the scale."""
    scale = SHORT_SIDE / min(rgb.shape[:2])
    if scale >= 1:
        return rgb, 1.0
    size = max(1, round(rgb.shape[1] * scale)), max(1, round(rgb.shape[0] * scale))
    return cv2.resize(rgb, size, interpolation=cv2.INTER_AREA), scale


def _scaled(box: Box, scale: float, size: tuple[int, int]) -> Box:
    left, top = math.floor(box[0] * scale), math.floor(box[1] * scale)
    return left, top, min(size[1], math.ceil(box[2] * scale)), min(size[0], math.ceil(box[3] * scale))


def _span(mask: np.ndarray, box: Box) -> float:
    """The share of a box's width, or height if less, that a mask in it spans."""
    if not mask.any():
        return 0.0
    rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    return min((columns[-1] - columns[0] + 1) / (box[2] - box[0]), (rows[-1] - rows[0] + 1) / (box[3] - box[1]))


def _cut(rgb: np.ndarray, window: Box, share: np.ndarray, sure: float = SURE, with_share: bool = False) -> np.ndarray:
    """OpenCV's grabCut in a window of a frame, from the object's share of the window's cells [h, w]: bool [H, W].

    with_share: the models are of share, lightness and redness, instead of colors.
    """
    cells = Cells.of(rgb, window, CUT_CELLS)
    share = cv2.resize(share.astype(np.float32), cells.colors.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    labels = np.where(share > 0.5, cv2.GC_PR_FGD, cv2.GC_PR_BGD).astype(np.uint8)
    labels[share < 1 - sure], labels[share > sure] = cv2.GC_BGD, cv2.GC_FGD
    ours = (labels & 1) > 0  # both kinds of foreground are odd
    if ours.any() and not ours.all():
        cv2.setRNGSeed(0)
        image = cv2.cvtColor(cells.colors, cv2.COLOR_RGB2LAB if with_share else cv2.COLOR_RGB2BGR)
        if with_share:
            guided = GuidedFilter(cells.colors, frame_size(share.shape), GUIDE_RADIUS, GUIDE_EPS)
            image[..., 2] = np.round(255 * guided(share).clip(0, 1))
        cv2.grabCut(image, labels, (0, 0, 0, 0), np.zeros((1, 65)), np.zeros((1, 65)), ROUNDS, cv2.GC_INIT_WITH_MASK)
    left, top, right, bottom = window
    found = np.zeros(rgb.shape[:2], bool)
    part = (labels & 1).astype(np.float32)
    found[top:bottom, left:right] = cv2.resize(part, (right - left, bottom - top), interpolation=cv2.INTER_LINEAR) > 0.5
    return found


def _without_specks(mask: np.ndarray) -> np.ndarray:
    """The parts of a mask, bool [H, W], of at least LEAST_PART of the largest."""
    count, parts, stats, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8))
    if count < 2:
        return mask
    areas = stats[:, cv2.CC_STAT_AREA]
    kept = areas >= LEAST_PART * areas[1:].max()
    kept[0] = False
    return kept[parts]


def _enlarged(mask: np.ndarray, box: Box, size: tuple[int, int]) -> np.ndarray:
    """A mask at the frame's size, within the box; the box's ellipse if nothing is left."""
    large = cv2.resize(mask.astype(np.float32), size[::-1], interpolation=cv2.INTER_LINEAR) > 0.5
    found = np.zeros(size, bool)
    left, top, right, bottom = box
    found[top:bottom, left:right] = large[top:bottom, left:right]
    return found if found.any() else _ellipse(box, size)


def _ellipse(box: Box, size: tuple[int, int]) -> np.ndarray:
    """The ellipse in a box, bool [H, W]."""
    left, top, right, bottom = box
    x, y = np.arange(size[1]) + 0.5, np.arange(size[0]) + 0.5
    across, down = (2 * x - left - right) / (right - left), (2 * y - top - bottom) / (bottom - top)
    return np.square(down)[:, None] + np.square(across) <= 1


def _checked(points: Sequence[Sequence[float]], size: tuple[int, int]) -> list[tuple[int, int]]:
    """Points as whole pixels (x, y)."""
    found = []
    for x, y in points:
        if not (math.isfinite(x + y) and 0 <= x < size[1] and 0 <= y < size[0]):
            raise InputError(
                f"the point {x:g},{y:g} is outside the frame; expected one of its {size[1]} x {size[0]} pixels"
            )
        found.append((int(x), int(y)))
    return found


def _near(cells: Cells, points: Sequence[tuple[float, float]], radius: float) -> np.ndarray:
    """The cells within a radius of points, and those that hold them, bool [h, w]."""
    found = np.zeros(cells.colors.shape[:2], bool)
    for x, y in points:
        found |= np.square(cells.y - y)[:, None] + np.square(cells.x - x) <= radius * radius
        found[np.abs(cells.y - y).argmin(), np.abs(cells.x - x).argmin()] = True
    return found


def _parts_of_points(
    mask: np.ndarray, on: Sequence[tuple[int, int]], off: Sequence[tuple[int, int]], radius: int
) -> np.ndarray:
    """The parts of a mask that hold the points `on`, with discs around these and without those around `off`."""
    drawn = mask.astype(np.uint8)
    for points, value in ((on, 1), (off, 0)):
        for point in points:
            cv2.circle(drawn, point, radius, value, -1)
    for points, value in ((on, 1), (off, 0)):  # where discs overlap
        for x, y in points:
            drawn[y, x] = value
    _, parts = cv2.connectedComponents(drawn)
    return np.isin(parts, [parts[y, x] for x, y in on])
