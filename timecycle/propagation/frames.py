"""Frames of a video, read ahead and preprocessed as a protocol says, and their features."""

import math
import typing
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import cv2
import numpy as np
import torch
from torch import Tensor

from timecycle.data.images import read_rgb
from timecycle.errors import InputError
from timecycle.normalization import normalize
from timecycle.propagation.labels import Size
from timecycle.propagation.protocols import Protocol

T = TypeVar("T")
R = TypeVar("R")

READ_AHEAD = 4
"""Number of frames that are read and preprocessed ahead, in a separate thread."""
Timer = Callable[[str], AbstractContextManager[object]]
"""Called with the stage of a frame, "read" (in the reading thread), "encode" or "propagate"; returns its context."""


def image_size(height: int, width: int, protocol: Protocol) -> Size:
    """Height and width, in pixels, of the image that is encoded.

    Args:
        height: of the frame, in pixels.
        width: of the frame, in pixels.
        protocol: how images are resized.
    """
    if protocol.resize == "square" and protocol.side > 0:
        return protocol.side, protocol.side
    if protocol.resize == "native" or protocol.side <= 0:
        return height, width
    tall = height > width
    # As in the published code: the short side is given, the long one (the width if both are equal) is rounded.
    long = protocol.side * max(height, width) / min(height, width) / protocol.multiple
    rounded = {"floor": math.floor(long), "ceil": math.ceil(long), "nearest": math.floor(long + 0.5)}[protocol.rounding]
    sides = [protocol.side, max(1, rounded) * protocol.multiple]
    if protocol.rounding == "ceil":
        sides[0] = math.ceil(protocol.side / protocol.multiple) * protocol.multiple
    return (sides[1], sides[0]) if tall else (sides[0], sides[1])


def preprocess(rgb: np.ndarray, protocol: Protocol) -> Tensor:
    """Resize and normalize a frame to the image that is encoded.

    Args:
        rgb: the frame, uint8 RGB [H, W, 3].
        protocol: how images are resized and normalized.

    Returns:
        float32 [3, H', W'].

    Resizing is bilinear by OpenCV, of floats for "square" (TimeCycle) and of bytes otherwise, as in the published code.
    """
    size = image_size(rgb.shape[0], rgb.shape[1], protocol)
    image = rgb.astype(np.float32) / 255.0 if protocol.resize == "square" else rgb
    if size != rgb.shape[:2]:
        image = cv2.resize(image, size[::-1], interpolation=cv2.INTER_LINEAR)
    if protocol.color == "lightness":  # UVC: ((L - 128) / 128 + 1) / 2 with L in 0 .. 255
        if image.dtype != np.uint8:
            image = (image * 255).round().astype(np.uint8)
        lightness = cv2.cvtColor(image, cv2.COLOR_RGB2LAB)[:, :, :1].astype(np.float32) / 256.0
        image = np.repeat(lightness, 3, axis=2)
    elif image.dtype == np.uint8:
        image = image.astype(np.float32) / 255.0
    tensor = torch.from_numpy(np.ascontiguousarray(image.transpose(2, 0, 1)))
    return normalize(tensor, protocol.mean, protocol.std)


@dataclass(frozen=True)
class Sizes:
    """Height and width of a video's frames and of the encoded images, in pixels, and of the feature grid."""

    frame: Size
    """Pixels of a frame."""
    working: Size
    """Pixels of an encoded image."""
    grid: Size
    """Positions of the features."""

    @property
    def pixels_per_position(self) -> np.ndarray:
        """float64 [2]: width and height of a feature position, in pixels of the frame."""
        return np.array([self.frame[1] / self.grid[1], self.frame[0] / self.grid[0]])

    def to_grid(self, pixels: np.ndarray) -> np.ndarray:
        """Points [..., 2] in pixels of the frame as feature positions; integers are centers in both (half-pixel)."""
        return (pixels + 0.5) / self.pixels_per_position - 0.5

    def to_pixels(self, positions: np.ndarray) -> np.ndarray:
        """The inverse of `to_grid`."""
        return (positions + 0.5) * self.pixels_per_position - 0.5


class FrameEncoder(typing.Protocol):
    """The interface of feature extractors in this package: `CallableExtractor` and `Features` have it."""

    l2: bool
    """Whether features have length 1 already."""
    frame: Path | str | None
    """The frame that is encoded next, for error messages; set by `encode_frames`."""

    def begin(self, first: Tensor) -> None:
        """Start a video with its first image, [3, H, W]."""

    def __call__(self, images: Tensor) -> Tensor:
        """Normalized images [B, 3, H, W] -> features [B, D, h, w]."""


@dataclass(frozen=True, eq=False)
class EncodedFrame:
    """One frame's features."""

    features: Tensor
    """[D, h, w], or [B, D, h, w] of B videos side by side."""
    sizes: Sizes
    """Of frame, encoded image and feature grid."""
    rgb: np.ndarray | None = None
    """The frame, uint8 [H, W, 3], if known."""


def encode_frames(
    frames: Iterable[np.ndarray | Path],
    features: FrameEncoder,
    protocol: Protocol,
    *,
    first: int = 0,
    read_ahead: int = READ_AHEAD,
    timer: Timer = nullcontext,
) -> Iterator[EncodedFrame]:
    """Encode each frame of a video, in the order given.

    Args:
        frames: uint8 RGB [H, W, 3], or image files.
        features: the feature extractor.
        protocol: how images are resized and normalized.
        first: index of the first of the frames.
        read_ahead: number of frames to read ahead, by default 4.
        timer: as for `propagate_frames`.

    Yields:
        Each frame's features.

    Raises InputError as `propagate_frames`.
    """
    sized: tuple[Path | str, tuple[int, ...]] | None = None

    def read(numbered: tuple[int, np.ndarray | Path]) -> tuple[Path | str, np.ndarray, Tensor]:
        nonlocal sized
        index, frame = numbered
        with timer("read"):
            name, rgb = (frame, read_rgb(frame)) if isinstance(frame, Path) else (f"frame {index}", frame)
            if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
                raise InputError(f"{name} is {rgb.dtype} {list(rgb.shape)}; expected uint8 RGB [H, W, 3]")
            sized = sized or (name, rgb.shape)
            if rgb.shape != sized[1]:
                raise InputError(
                    f"{name} is {rgb.shape[1]} x {rgb.shape[0]}; expected {sized[1][1]} x {sized[1][0]} like {sized[0]}"
                )
            return name, rgb, preprocess(rgb, protocol)

    for index, (name, rgb, image) in enumerate(ahead(read, enumerate(frames, first), read_ahead), first):
        with timer("encode"), torch.no_grad():
            features.frame = name
            if index == 0:
                features.begin(image)
            feature = features(image[None])[0]
        yield EncodedFrame(
            feature, Sizes(frame_size(rgb.shape), frame_size(image.shape[1:]), frame_size(feature.shape[1:])), rgb
        )


def ahead(work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """Yield `work(item)` of each item in order, computed in a thread up to `count` items ahead of the consumer."""
    if count < 1:
        yield from map(work, items)
        return
    remaining = iter(items)

    def next_result() -> tuple[R] | None:
        for item in remaining:
            return (work(item),)
        return None

    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[tuple[R] | None]] = deque(pool.submit(next_result) for _ in range(count))
        try:
            while (found := waiting.popleft().result()) is not None:
                waiting.append(pool.submit(next_result))
                yield found[0]
        finally:
            for future in waiting:
                future.cancel()


def frame_size(shape: Sequence[int]) -> Size:
    """Height and width, the first two of an image's dimensions."""
    return shape[0], shape[1]
