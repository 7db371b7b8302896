"""Datasets for contrastive random walks: two crops of a video, or a grid of patches.

Source: Jabri, Owens, Efros (NeurIPS 2020), section 3.2 and appendix, for the grid; the two crops are this project's
(`timecycle.models.walk`).
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from torch import Tensor

from timecycle.data.clips import Clip
from timecycle.data.datasets import ClipDataset, Generators, normalized
from timecycle.errors import InputError
from timecycle.models.encoder import STRIDE
from timecycle.models.walk import NO_TARGET

SHORT_SIDE = 256  # pixels; sizes refer to frames with this short side
SCALES = (0.8, 1.25)  # range of a window's side, relative to the crop's
SHIFT = 0.3  # maximum distance of the two windows' centers along an axis, in crop sides
PATCH_AREA = (0.7, 0.9)  # range of a patch's area, as a fraction of its grid cell
PATCH_RATIO = (3 / 4, 4 / 3)


@dataclass(frozen=True)
class Window:
    """A rectangle of a frame in pixels, where integer coordinates are pixel corners."""

    left: float
    top: float
    width: float
    height: float

    def cut(self, frames: Iterable[np.ndarray], size: int) -> np.ndarray:
        """The window of each frame [H, W, 3], resized bilinearly: uint8 [T, size, size, 3]."""
        across, down = size / self.width, size / self.height
        # OpenCV's coordinates are pixel centers.
        matrix = np.array(
            [
                [across, 0, (0.5 - self.left) * across - 0.5],
                [0, down, (0.5 - self.top) * down - 0.5],
            ]
        )
        return np.stack([cv2.warpAffine(f, matrix, (size, size), borderMode=cv2.BORDER_REPLICATE) for f in frames])


def target_cells(window: Window, other: Window, side: int) -> np.ndarray:
    """For each of a window's side x side cells, the index of the other's cell at its center, int64 [side * side].

    Cells are in row-major order; -1 outside the other window.
    """
    centers = (np.arange(side) + 0.5) / side
    column = np.floor((window.left + centers * window.width - other.left) / other.width * side).astype(np.int64)
    row = np.floor((window.top + centers * window.height - other.top) / other.height * side).astype(np.int64)
    inside = ((row >= 0) & (row < side))[:, None] & ((column >= 0) & (column < side))[None]
    return np.where(inside, row[:, None] * side + column[None], NO_TARGET).ravel()


def two_windows(height: int, width: int, crop: int, generator: np.random.RandomState) -> tuple[Window, Window]:
    """Two square windows of a frame, each of a random scale, the second near the first."""
    unit = crop * min(height, width) / SHORT_SIDE

    def side() -> float:
        return min(unit * math.exp(generator.uniform(*np.log(SCALES))), height, width)

    first, second = side(), side()
    left, top = generator.uniform(0, width - first), generator.uniform(0, height - first)
    shift = generator.uniform(-SHIFT, SHIFT, 2) * unit
    # Clipped to the frame.
    near = [left + (first - second) / 2 + shift[0], top + (first - second) / 2 + shift[1]]
    there = np.clip(near, 0, [width - second, height - second])
    return Window(left, top, first, first), Window(float(there[0]), float(there[1]), second, second)


def evenly_spaced(clip: Clip, length: int, most: int, generator: np.random.RandomState) -> list[int]:
    """Indices of `length` evenly spaced frames, with a random gap from 1 to `most` and a random start.

    The gap is reduced for short clips. Raises InputError for fewer than `length` frames.
    """
    widest = (clip.length - 1) // (length - 1)
    if widest < 1:
        raise InputError(f"{clip.name} has {clip.length} frames; expected at least {length}")
    gap = min(int(generator.randint(1, most + 1)), widest)
    start = int(generator.randint(clip.length - gap * (length - 1)))
    return [start + gap * i for i in range(length)]


class _WalkDataset(ClipDataset):
    """Samples of evenly spaced frames."""

    def __init__(self, clips: list[Clip], seed: int, length: int, max_frame_gap: int) -> None:
        super().__init__(clips, seed)
        if length < 2 or max_frame_gap < 1:
            raise InputError(f"length is {length} and max_frame_gap {max_frame_gap}; expected at least 2 and 1")
        self.length, self.max_frame_gap = length, max_frame_gap

    def frames(self, clip: Clip, generator: np.random.RandomState) -> tuple[int, np.ndarray]:
        """The first frame's index, and the frames of `evenly_spaced`, uint8 [T, H, W, 3]."""
        numbers = evenly_spaced(clip, self.length, self.max_frame_gap, generator)
        return numbers[0], clip.read(numbers)


class CropWalkDataset(_WalkDataset):
    """Samples for `CropWalk`: ahead [T, 3, c, c], back [T - 1, 3, c, c], target [(c / 8)^2].

    Args:
        clips: at least one.
        seed: 0 or more.
        crop_side: side of a crop in pixels, c, a multiple of 8, for frames with a short side of 256.
        length: frames of a sample, T, at least 2.
        max_frame_gap: the gap between frames is drawn from 1 to this.

    Raises InputError for sizes out of range.
    """

    def __init__(
        self, clips: list[Clip], seed: int, crop_side: int = 128, length: int = 4, max_frame_gap: int = 3
    ) -> None:
        super().__init__(clips, seed, length, max_frame_gap)
        if crop_side < STRIDE or crop_side % STRIDE or crop_side > SHORT_SIDE:
            raise InputError(f"crop_side is {crop_side} pixels; expected a multiple of {STRIDE}, at most {SHORT_SIDE}")
        self.crop_side = crop_side

    def sample(self, clip: Clip, generators: Generators) -> dict[str, Tensor]:
        """One sample of a clip."""
        generator = generators.numpy
        first_number, frames = self.frames(clip, generator)
        first, second = two_windows(frames.shape[1], frames.shape[2], self.crop_side, generator)
        return {
            "ahead": normalized(_unit(first.cut(frames, self.crop_side))),
            "back": normalized(_unit(second.cut(frames[:-1], self.crop_side))),
            "target": torch.from_numpy(target_cells(first, second, self.crop_side // STRIDE)),
            "first": torch.tensor(first_number),
        }


class GridWalkDataset(_WalkDataset):
    """Samples for `GridWalk`: patches [T, N, 3, p, p] of grid cells that overlap by half.

    Each patch is a random part of its cell, of 0.7 to 0.9 of the area, drawn for each frame.

    Args:
        clips: at least one.
        seed: 0 or more.
        frame_side: side in pixels of the square that a frame is resized to, 256 as published.
        cell_side: side in pixels of a cell and its patch, p; 64 as published, which gives 7 x 7 cells.
        length: frames of a sample, T.
        max_frame_gap: as for `CropWalkDataset`; the published program has a fixed gap.

    Raises InputError for sizes out of range.
    """

    def __init__(
        self,
        clips: list[Clip],
        seed: int,
        frame_side: int = 256,
        cell_side: int = 64,
        length: int = 4,
        max_frame_gap: int = 2,
    ) -> None:
        super().__init__(clips, seed, length, max_frame_gap)
        if cell_side < STRIDE or frame_side < cell_side:
            raise InputError(
                f"frame_side is {frame_side} and cell_side {cell_side} pixels; expected at least {STRIDE} and "
                "frame_side >= cell_side"
            )
        self.frame_side, self.cell_side = frame_side, cell_side

    def sample(self, clip: Clip, generators: Generators) -> dict[str, Tensor]:
        """One sample of a clip."""
        generator = generators.numpy
        first_number, frames = self.frames(clip, generator)
        squares = [
            cv2.resize(frame, (self.frame_side, self.frame_side), interpolation=cv2.INTER_AREA) for frame in frames
        ]
        corners = range(0, self.frame_side - self.cell_side + 1, self.cell_side // 2)
        patches = [
            random_part(left, top, self.cell_side, generator).cut([square], self.cell_side)
            for square in squares
            for top in corners
            for left in corners
        ]
        nodes = len(corners) ** 2
        images = normalized(_unit(np.concatenate(patches)))
        return {"patches": images.unflatten(0, (self.length, nodes)), "first": torch.tensor(first_number)}


def random_part(left: int, top: int, side: int, generator: np.random.RandomState) -> Window:
    """A random part of a square cell, of random area and aspect ratio, as torchvision's RandomResizedCrop."""
    while True:
        area = generator.uniform(*PATCH_AREA) * side**2
        ratio = math.exp(generator.uniform(*np.log(PATCH_RATIO)))
        width, height = math.sqrt(area * ratio), math.sqrt(area / ratio)
        if width <= side and height <= side:
            break
    return Window(left + generator.uniform(0, side - width), top + generator.uniform(0, side - height), width, height)


def _unit(images: np.ndarray) -> np.ndarray:
    return images.astype(np.float32) / 255.0
