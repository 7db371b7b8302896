"""Cues that tell an object in a box from its background, on a grid of cells: affinity, color and motion.

A cell is a small rectangle of pixels with their mean color. Positions outside the box are known to be background.
"""

import math
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from timecycle.ops import Select, topk_affinity

CELLS = 6000
FEATURE_SCALE = 1.0  # length of a feature, in the same units
NEIGHBORS = 10  # of a cell, in color and position
STEPS = 200  # of the walk over the cells
COLOR_SCALE = 2.0  # in units of Lab: colors so far apart are as different as positions `reach` apart
BINS = 24  # of a color histogram, per channel of Lab
BLUR = (0.2, 0.6, 0.2)  # of histograms
MIXING = 5  # rounds of estimating the object's colors
LOCAL = 0.3  # distance, in sizes of the box, at which background colors count a third
LEAST_MOTION = 1.0  # pixels, of 5 % of the box; with less, motion says nothing
STANDS_OUT = 1.5
"""Motion in the box, by its upper quartile, must be so many times that around it: water moves everywhere."""
AFFINITY_K, AFFINITY_TEMPERATURE, AFFINITY_STEPS = 20, 0.05, 10

Box = tuple[int, int, int, int]
"""Left, top, right and bottom in pixels; right and bottom are exclusive."""


@dataclass(frozen=True, eq=False)
class Cells:
    """The cells of a window of a frame."""

    window: Box
    colors: np.ndarray
    """uint8 RGB [h, w, 3]."""
    x: np.ndarray
    """Centers in pixels of the frame, float64 [w]."""
    y: np.ndarray
    """float64 [h]."""

    @classmethod
    def of(cls, rgb: np.ndarray, window: Box, most: int = CELLS) -> "Cells":
        """Divide a window of a frame, uint8 RGB [H, W, 3], into about `most` cells, not smaller than pixels."""
        left, top, right, bottom = window
        part = rgb[top:bottom, left:right]
        scale = min(1.0, math.sqrt(most / (part.shape[0] * part.shape[1])))
        height, width = (max(1, round(side * scale)) for side in part.shape[:2])
        colors = cv2.resize(part, (width, height), interpolation=cv2.INTER_AREA)
        x = left + (np.arange(width) + 0.5) * (right - left) / width
        y = top + (np.arange(height) + 0.5) * (bottom - top) / height
        return cls(window, colors, x, y)

    def inside(self, box: Box) -> np.ndarray:
        """The cells whose centers are in a box, bool [h, w]."""
        rows, columns = (self.y > box[1]) & (self.y < box[3]), (self.x > box[0]) & (self.x < box[2])
        return rows[:, None] & columns

    def sampled(self, values: np.ndarray) -> np.ndarray:
        """A map of the frame, [H, W], averaged over the cells: float32 [h, w]."""
        left, top, right, bottom = self.window
        size = self.colors.shape[1::-1]
        return cv2.resize(values[top:bottom, left:right].astype(np.float32), size, interpolation=cv2.INTER_AREA)


def lab(rgb: np.ndarray) -> np.ndarray:
    """Colors, uint8 RGB [H, W, 3], as CIE Lab, float32."""
    return cv2.cvtColor(rgb.astype(np.float32) / 255, cv2.COLOR_RGB2LAB)


def cell_neighbors(cells: Cells, reach: float, features: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """The most similar cells of each, itself among them: weights, float32 [N, K], and indices, int64 [N, K].

    Similarity falls with the distance in color (in units of COLOR_SCALE), position (in units of `reach` pixels) and, if
    the cells cover the whole frame, its features [D, h', w'].
    """
    height, width = cells.colors.shape[:2]
    places = np.stack(np.broadcast_arrays(cells.x, cells.y[:, None]), axis=2) / reach
    points = torch.from_numpy(np.concatenate([lab(cells.colors) / COLOR_SCALE, places], axis=2).astype(np.float32))
    points = points.reshape(height * width, -1)
    if features is not None:
        large = functional.interpolate(features.detach().float().cpu()[None], (height, width), mode="bilinear")[0]
        points = torch.cat([points, functional.normalize(large.flatten(1).T, dim=1) * FEATURE_SCALE], dim=1)
    points = points - points.mean(dim=0)
    squares, ones = points.square().sum(dim=1, keepdim=True), torch.ones(len(points), 1)
    # Dot products of these are negative squared distances.
    query, key = torch.cat([2 * points, -squares, -ones], dim=1), torch.cat([points, ones, squares], dim=1)
    select = Select(k=min(NEIGHBORS, len(points)), temperature=1.0)
    weights, indices = topk_affinity(query[None], key[None], torch.zeros(1, 1, dtype=torch.int64), select)
    return weights[0], indices[0].long()


def walked(neighbors: tuple[Tensor, Tensor], start: np.ndarray, fixed: np.ndarray, steps: int = STEPS) -> np.ndarray:
    """Labels, float32 [h, w], after so many steps to the neighbors' mean; those of `fixed` cells [h, w] stay."""
    weights, indices = neighbors
    labels = first = torch.from_numpy(start.astype(np.float32)).flatten()
    stay = torch.from_numpy(fixed).flatten()
    for _ in range(steps):
        labels = torch.where(stay, first, (weights * labels[indices]).sum(dim=1))
    return labels.reshape(start.shape).numpy()


def feature_affinity(features: Tensor, size: tuple[int, int], box: Box) -> np.ndarray:
    """How much positions in the box resemble each other more than those outside: float32 [h, w], of features [D, h, w].

    Labels (1 inside, 0 outside) are propagated within the frame, outside clamped to 0. size: the frame's (H, W).
    """
    height, width = features.shape[1:]
    x, y = (np.arange(width) + 0.5) * size[1] / width, (np.arange(height) + 0.5) * size[0] / height
    inside = ((y > box[1]) & (y < box[3]))[:, None] & ((x > box[0]) & (x < box[2]))
    rows = functional.normalize(features.detach().float().cpu().flatten(1).T, dim=1)[None].contiguous()
    select = Select(k=min(AFFINITY_K, height * width), temperature=AFFINITY_TEMPERATURE)
    weights, indices = topk_affinity(rows, rows, torch.zeros(1, 1, dtype=torch.int64), select)
    return walked((weights[0], indices[0].long()), inside, ~inside, AFFINITY_STEPS)


class Colors:
    """The colors of a frame as bins of a histogram."""

    def __init__(self, rgb: np.ndarray) -> None:
        colors = lab(rgb)
        scaled = np.stack([colors[..., 0] / 100, (colors[..., 1] + 64) / 128, (colors[..., 2] + 64) / 128])
        bins = (scaled * BINS).clip(0, BINS - 1).astype(np.int64)
        self.bins = (bins[0] * BINS + bins[1]) * BINS + bins[2]
        """int64 [H, W]."""

    def frequencies(self, weights: np.ndarray) -> np.ndarray:
        """The frequency of each pixel's color, float64 [H, W], in a frame whose pixels have weights [H, W]."""
        counts = np.bincount(self.bins.ravel(), weights.ravel(), BINS**3).reshape(BINS, BINS, BINS)
        for axis in range(3):
            shifted = [share * np.roll(counts, shift, axis) for shift, share in zip((-1, 0, 1), BLUR, strict=True)]
            counts = np.sum(shifted, axis=0)
        return (counts / max(counts.sum(), 1e-9)).ravel()[self.bins] + 1e-9

    def object_share(self, inside: np.ndarray, background: np.ndarray) -> np.ndarray:
        """How probably each pixel inside is of the object, float32 [H, W], by its color.

        The colors inside (bool [H, W]) are a mixture of the background's (weights [H, W]) and the object's; the latter
        are estimated by expectation maximization.
        """
        there = self.frequencies(background)
        share = np.maximum(0.0, 1 - 0.5 * there / self.frequencies(inside.astype(np.float64)))
        for _ in range(MIXING):
            ours = self.frequencies(inside * share)
            share = ours / (ours + there)
        return (share * inside).astype(np.float32)


def motion(rgb: np.ndarray, other: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """Length of the motion against the background, in pixels, float32 [H, W], from a frame to another one.

    The background's motion is a homography of the optical flow (DIS, Kroeger et al., 2016) outside the box.
    """
    flow_of = cv2.DISOpticalFlow.create(cv2.DISOPTICAL_FLOW_PRESET_MEDIUM)
    flow_of.setFinestScale(0)
    flow_of.setPatchStride(3)
    gray = [cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY) for frame in (rgb, other)]
    flow = flow_of.calc(gray[0], gray[1], None)  # type: ignore[call-overload]  # no first guess
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]].astype(np.float32)
    places = np.stack([x, y], axis=2)
    sampled = np.zeros(inside.shape, bool)
    sampled[::4, ::4] = True
    sampled &= ~inside
    found = None
    if np.count_nonzero(sampled) >= 20:
        cv2.setRNGSeed(0)
        found = cv2.findHomography(places[sampled], (places + flow)[sampled], cv2.RANSAC, 1.0)[0]
    moved = cv2.perspectiveTransform(places, np.eye(3) if found is None else found)
    return np.linalg.norm(places + flow - moved, axis=2)


def ranks(values: np.ndarray, inside: np.ndarray) -> np.ndarray:
    """The rank of each value inside among them, from 0 to 1, float32 [h, w]; 0 outside."""
    found = np.zeros(values.shape, np.float32)
    order = np.argsort(np.argsort(values[inside], kind="stable"), kind="stable")
    found[inside] = order / max(1, len(order) - 1)
    return found


CUES = ("near", "near rank", "wide", "wide rank", "color", "local color", "local color rank", "affinity",
        "affinity rank", "motion", "motion rank")  # fmt: skip


def box_cues(
    rgb: np.ndarray, box: Box, cells: Cells, features: Tensor | None, other: np.ndarray | None
) -> dict[str, np.ndarray]:
    """The cues of CUES, float32 [h, w] each; without those of missing features, and of motion if there is none.

    rgb: uint8 [H, W, 3]; other: a frame just before or after it, of the same size; features: [D, h', w'].
    """
    inside = cells.inside(box)
    size = math.sqrt((box[2] - box[0]) * (box[3] - box[1]))
    cues = {}
    for name, reach in (("near", 0.2), ("wide", 5.0)):
        cues[name] = walked(cell_neighbors(cells, reach * size), inside, ~inside)
    y, x = np.mgrid[: rgb.shape[0], : rgb.shape[1]]
    away = np.hypot(
        np.maximum(0, np.maximum(box[0] - x, x - box[2])), np.maximum(0, np.maximum(box[1] - y, y - box[3]))
    )
    within = np.zeros(rgb.shape[:2], bool)
    within[box[1] : box[3], box[0] : box[2]] = True
    colors = Colors(rgb)
    cues["color"] = cells.sampled(colors.object_share(within, (~within).astype(np.float64)))
    cues["local color"] = cells.sampled(colors.object_share(within, ~within * np.exp(-away / (LOCAL * size))))
    if features is not None:
        found = feature_affinity(features, rgb.shape[:2], box)
        cues["affinity"] = cells.sampled(cv2.resize(found, within.shape[::-1], interpolation=cv2.INTER_LINEAR))
    for name in ("near", "wide", "local color", "affinity"):
        if name in cues:
            cues[f"{name} rank"] = ranks(cues[name], inside)
    if other is None:
        return cues
    lengths = motion(rgb, other, within)
    left, top, right, bottom = cells.window
    around = np.zeros_like(within)
    around[top:bottom, left:right] = True
    band = np.sort(lengths[around & ~within])
    band = band if len(band) else np.zeros(1, np.float32)
    stands_out = np.quantile(lengths[within], 0.75) > STANDS_OUT * np.quantile(band, 0.75)
    if stands_out and np.quantile(lengths[within], 0.95) > LEAST_MOTION:
        cues["motion"] = cells.sampled(np.log((lengths + 0.1) / (np.median(band) + 0.1)).clip(-2, 4))
        cues["motion rank"] = cells.sampled(np.searchsorted(band, lengths) / len(band))
    return cues
