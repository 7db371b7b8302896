"""Label propagation through a video, frame by frame: frames -> features -> soft labels -> masks.

`propagate_frames` begins with RGB frames or image files, `propagate_features` with features, and `propagate` is the
latter for a whole video at once. Frames may be walked forward or backward in time, and labels may be given at any of
them.
"""

import typing
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence, Sized
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from timecycle.data.images import read_rgb
from timecycle.data.masks import ids_of
from timecycle.errors import InputError
from timecycle.features.maps import video_maps
from timecycle.propagation.images import preprocess
from timecycle.propagation.labels import Size, SoftLabels, index_mask, nearest, soft_labels
from timecycle.propagation.propagator import LabelPropagator, as_features
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol

T = TypeVar("T")
R = TypeVar("R")

READ_AHEAD = 4
"""Frames that are read and preprocessed, in a thread of their own, before they are needed."""


@dataclass(frozen=True)
class Sizes:
    """Three heights and widths of one video: of its frames, of the images that are encoded, of the feature grid."""

    frame: Size
    working: Size
    grid: Size

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
    """What `propagate_frames` takes features from: `CallableExtractor`, `Features`."""

    l2: bool
    """Whether features are of length 1 already."""
    frame: Path | str | None
    """The frame that is encoded next, for error messages; set by the driver."""

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
    rgb: np.ndarray | None = None
    """The frame, uint8 [H, W, 3], where it is known."""


LabelsAt = Callable[[int, Sizes], SoftLabels | None]
"""Labels given at a frame, by its index in the order of the walk, or None. Frame 0 must have some; those of a later
frame replace its prediction: a correction, or, with ids that are new, more objects."""
Timer = Callable[[str], AbstractContextManager[None]]
"""Entered around the stages of a frame: "read" (in the thread that reads), "encode" and "propagate"."""


def untimed(stage: str) -> AbstractContextManager[None]:
    """A timer that takes no time."""
    return nullcontext()


@dataclass(frozen=True, eq=False)
class PropagatedFrame:
    """One frame's labels."""

    index: int
    """In the order of the walk, from 0."""
    soft: Tensor
    """float32 [L, h, w], or [B, L, h, w] of B videos, as later frames see them."""
    ids: tuple[int, ...]
    """Object id of each of the L channels; a later frame may have more of them, at the end."""
    sizes: Sizes
    protocol: Protocol
    rgb: np.ndarray | None
    """The frame, uint8 [H, W, 3]; None where features came without it."""
    given: SoftLabels | None
    """The labels that were given at this frame, if any."""

    def mask(self, size: Size | None = None) -> np.ndarray:
        """Object ids, uint8 [H, W] (of B videos [B, H, W]), at the frame's size unless another is given.

        That of a frame whose labels were given as a mask is this mask under first_mask="given" of the protocol, and
        under "propagated" made from the soft labels as those of all other frames.
        """
        size = size or self.sizes.frame
        if self.protocol.first_mask == "given" and self.given is not None and self.given.mask is not None:
            return self._of_each_video(lambda mask: nearest(mask, size), self.given.mask, 2)
        working = self.sizes.working
        return self._of_each_video(lambda soft: index_mask(soft, self.ids, self.protocol, working, size), self.soft, 3)

    def _of_each_video(self, make: Callable[[Any], np.ndarray], given: Any, dimensions: int) -> np.ndarray:
        return make(given) if given.ndim == dimensions else np.stack([make(one) for one in given])


def labels_of_masks(masks: Mapping[int, np.ndarray], protocol: Protocol) -> LabelsAt:
    """The labels of masks, uint8 [H, W] ids by index of their frame."""

    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        return soft_labels(masks[index], protocol, sizes.grid, sizes.working) if index in masks else None

    return labels_at


def labels_of_maps(maps: Callable[[Sizes], np.ndarray]) -> LabelsAt:
    """The labels of the first frame as soft maps, float32 [L, h, w], such as heat maps of L joints."""

    def labels_at(index: int, sizes: Sizes) -> SoftLabels | None:
        if index:
            return None
        soft = maps(sizes)
        return SoftLabels(soft, tuple(range(soft.shape[-3])))

    return labels_at


def propagate_frames(
    frames: Iterable[np.ndarray | Path],
    features: FrameEncoder,
    protocol: Protocol,
    labels_at: LabelsAt,
    *,
    read_ahead: int = READ_AHEAD,
    timer: Timer = untimed,
) -> Generator[PropagatedFrame, None, None]:
    """Propagate labels through the frames of a video, in the order given.

    Memory does not grow with the length of the video; up to `read_ahead` frames are read before they are needed, and
    with 0 none is.

    Args:
        frames: uint8 RGB [H, W, 3], or image files.
        features: what encodes them.
        protocol: how labels are propagated.
        labels_at: the labels of the first frame, and of others, see `labels_of_masks` and `labels_of_maps`.
        read_ahead: number of frames.
        timer: of the stages.

    Raises InputError, naming the frame, for one that is damaged or of another size, or an extractor that fails; for
    labels that do not fit; and for features that are not finite, for which a GPU is asked after the last frame.
    """
    if features.l2:
        protocol = replace(protocol, l2=False)
    length = len(frames) if isinstance(frames, Sized) else None
    encoded = encode_frames(frames, features, protocol, read_ahead=read_ahead, timer=timer)
    return propagate_features(encoded, protocol, labels_at, length=length, timer=timer)


def encode_frames(
    frames: Iterable[np.ndarray | Path],
    features: FrameEncoder,
    protocol: Protocol,
    *,
    read_ahead: int = READ_AHEAD,
    timer: Timer = untimed,
) -> Iterator[EncodedFrame]:
    """The features of each frame; arguments and errors are those of `propagate_frames`."""
    first: tuple[Path | str, tuple[int, ...]] | None = None

    def read(numbered: tuple[int, np.ndarray | Path]) -> tuple[Path | str, np.ndarray, Tensor]:
        nonlocal first
        index, frame = numbered
        with timer("read"):
            name, rgb = (frame, read_rgb(frame)) if isinstance(frame, Path) else (f"frame {index}", frame)
            if rgb.ndim != 3 or rgb.shape[2] != 3 or rgb.dtype != np.uint8:
                raise InputError(f"{name} is {rgb.dtype} {list(rgb.shape)}; expected uint8 RGB [H, W, 3]")
            first = first or (name, rgb.shape)
            if rgb.shape != first[1]:
                raise InputError(
                    f"{name} is {rgb.shape[1]} x {rgb.shape[0]}; expected {first[1][1]} x {first[1][0]} like {first[0]}"
                )
            return name, rgb, preprocess(rgb, protocol)

    for index, (name, rgb, image) in enumerate(ahead(read, enumerate(frames), read_ahead)):
        with timer("encode"), torch.no_grad():
            features.frame = name
            if index == 0:
                features.begin(image)
            feature = features(image[None])[0]
        yield EncodedFrame(feature, Sizes(_size(rgb.shape), _size(image.shape[1:]), _size(feature.shape[1:])), rgb)


def propagate_features(
    frames: Iterable[EncodedFrame],
    protocol: Protocol,
    labels_at: LabelsAt,
    *,
    length: int | None = None,
    timer: Timer = untimed,
) -> Generator[PropagatedFrame, None, None]:
    """Propagate labels through frames that are encoded; `length` is their number, where it is known.

    Arguments and errors are else those of `propagate_frames`.
    """
    propagator, ids = LabelPropagator(protocol), tuple[int, ...]()
    for index, frame in enumerate(frames):
        with timer("propagate"):
            given = labels_at(index, frame.sizes)
            if given is not None:
                given = given.with_ids(ids) if index else given
                ids = given.ids
            labels = None if given is None else torch.from_numpy(given.soft).to(frame.features.device)
            if index:
                soft = propagator.step(frame.features, labels)
            elif labels is None:
                raise InputError("frame 0 has no labels; expected labels of the first frame")
            else:
                soft = propagator.start(frame.features, labels, length)
        yield PropagatedFrame(index, soft, ids, frame.sizes, protocol, frame.rgb, given)
    propagator.check()


def ahead(work: Callable[[T], R], items: Iterable[T], count: int) -> Iterator[R]:
    """`work(item)` of each item in order, computed in a thread up to `count` items before it is asked for."""
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


@dataclass(frozen=True)
class Propagation:
    """A video's labels."""

    soft: Tensor
    """[F, L, h, w] float32, as later frames see them."""
    masks: np.ndarray
    """[F, H, W] uint8 ids."""
    ids: tuple[int, ...]
    """Object id of each of the L channels."""


def propagate(
    features: Tensor | np.ndarray | Sequence[Tensor | np.ndarray],
    mask: np.ndarray | Tensor,
    protocol: str | Protocol = "timecycle",
    *,
    working_size: Size | None = None,
    output_size: Size | None = None,
    **overrides: Any,
) -> Propagation:
    """Propagate a first frame's mask through a video whose features exist already.

    Args:
        features: [F, D, h, w] of all frames, any floating dtype and device, as a tensor, a NumPy array or a list of
            [D, h, w]; see `timecycle.features.maps.video_maps` for what else is recognized. L2-normalized here if the
            protocol says so; gradients do not pass.
        mask: [H, W] ids of frame 0, integers from 0 to 255 or bool; 255 is void and counts as background. One of 0 and
            255 alone, or with soft edges, is refused, as the command line refuses such a file.
        protocol: a preset's name, or a protocol.
        working_size: (height, width) in pixels of the images that were encoded; without it the multiple of (h, w) that
            is nearest to the mask's size.
        output_size: (height, width) of the masks; the given mask's without it.
        overrides: fields of the protocol to change, such as k=7.

    Raises:
        InputError: features or mask have the wrong shape or type or are not finite, or the protocol is unknown.

    Source: as LabelPropagator.
    """
    height, width = mask_of(mask).shape
    maps = video_maps(features, (height, width), working_size)
    frames = list(propagate_maps(maps, mask, as_protocol(protocol, **overrides), working_size))
    masks = [frame.mask(output_size) for frame in frames]
    return Propagation(torch.stack([frame.soft for frame in frames]), np.stack(masks), frames[0].ids)


def propagate_maps(
    features: Iterable[Tensor], mask: np.ndarray | Tensor, protocol: Protocol, working_size: Size | None = None
) -> Iterator[PropagatedFrame]:
    """`propagate` frame by frame, for features [D, h, w] that come one after the other."""
    given = mask_of(mask)

    def encoded() -> Iterator[EncodedFrame]:
        for feature in map(as_features, features):
            grid = _size(feature.shape[-2:])
            stride = max(1, round(given.shape[0] / grid[0]))
            working = working_size or (grid[0] * stride, grid[1] * stride)
            yield EncodedFrame(feature, Sizes(_size(given.shape), working, grid))

    length = len(features) if isinstance(features, Sized) else None
    return propagate_features(encoded(), protocol, labels_of_masks({0: given}, protocol), length=length)


def mask_of(mask: np.ndarray | Tensor) -> np.ndarray:
    """A mask as uint8 [H, W], see `timecycle.data.masks.ids_of`. Raises InputError if it is none."""
    return ids_of(mask.detach().cpu().numpy() if isinstance(mask, Tensor) else np.asarray(mask))


def _size(shape: Sequence[int]) -> Size:
    return shape[0], shape[1]
