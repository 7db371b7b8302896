"""A video's frames through features and the propagator, one at a time: what all tasks have in common."""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from timecycle.data.images import read_rgb
from timecycle.errors import InputError
from timecycle.features.extractors import GivenFeatures
from timecycle.propagation.images import prepared
from timecycle.propagation.labels import Size
from timecycle.propagation.propagator import LabelPropagator
from timecycle.propagation.protocols import Protocol


@dataclass(frozen=True)
class Sizes:
    """Three heights and widths of one video: of its frames, of the images that are encoded, of the feature grid."""

    frame: Size
    working: Size
    grid: Size

    @property
    def pixels_per_position(self) -> np.ndarray:
        """float64 [2]: how wide and how high a feature position is, in pixels of the frame."""
        return np.array([self.frame[1] / self.grid[1], self.frame[0] / self.grid[0]])

    def to_grid(self, pixels: np.ndarray) -> np.ndarray:
        """Places [..., 2] in pixels of the frame as feature positions; both count middles, so that corners agree."""
        return (pixels + 0.5) / self.pixels_per_position - 0.5

    def to_pixels(self, positions: np.ndarray) -> np.ndarray:
        """The way back."""
        return (positions + 0.5) * self.pixels_per_position - 0.5


FirstMaps = Callable[[Sizes], np.ndarray]
"""Soft labels of the first frame, float32 [L, h, w]."""


@dataclass(frozen=True)
class FrameFiles:
    """Frames of files in order, uint8 RGB [H, W, 3]. Raises InputError for one that is damaged or of another size."""

    paths: Sequence[Path]

    def __iter__(self) -> Iterator[np.ndarray]:
        first = None
        for path in self.paths:
            rgb = read_rgb(path)
            first = rgb.shape if first is None else first
            if rgb.shape != first:
                raise InputError(
                    f"{path} is {rgb.shape[1]} x {rgb.shape[0]}; expected {first[1]} x {first[0]} like {self.paths[0]}"
                )
            yield rgb


def carry(
    frames: Iterable[np.ndarray], features: GivenFeatures, rules: Protocol, first_maps: FirstMaps
) -> Iterator[tuple[Tensor, Sizes]]:
    """Soft labels [L, h, w] of each frame, and the video's sizes.

    No more is held than the propagator's memory, however long the video is. Raises InputError for an extractor that
    fails, naming the frame, and for features that are not finite; for the latter on a GPU after the last frame.
    """
    propagator = LabelPropagator(rules)
    paths = frames.paths if isinstance(frames, FrameFiles) else None
    for index, rgb in enumerate(frames):
        features.frame = paths[index] if paths is not None else f"frame {index}"
        image = prepared(rgb, rules)
        if index == 0:
            features.begin(image)
        feature = features(image[None])[0]
        if index == 0:
            sizes = Sizes(_size(rgb.shape), _size(image.shape[1:]), _size(feature.shape[1:]))
            soft = propagator.start(feature, torch.from_numpy(first_maps(sizes)).to(feature.device))
        else:
            soft = propagator.step(feature)
        yield soft, sizes
    propagator.check()


def _size(shape: Sequence[int]) -> Size:
    return shape[0], shape[1]
