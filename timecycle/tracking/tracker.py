"""Track objects through a video, from masks, boxes or points of some frames to masks of all frames."""

import functools
import tempfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from timecycle.data.masks import LARGEST_ID, ids_of
from timecycle.data.source import FrameSource, Wanted, frame_of, open_source
from timecycle.errors import InputError
from timecycle.features.extractors import Extractor, extractor_on, usable_device
from timecycle.features.named import DEFAULT, DTYPES, Features
from timecycle.files import growing
from timecycle.propagation.frames import FrameEncoder, preprocess
from timecycle.propagation.protocols import Protocol, mask_protocol
from timecycle.tracking.annotations import Annotations
from timecycle.tracking.outputs import TRACKED, Outputs, Wishes
from timecycle.tracking.prompts import mask_from_box, mask_from_points
from timecycle.tracking.run import Span, Step, TrackingRun, check_frames
from timecycle.tracking.store import MaskStore
from timecycle.viewing.overlays import Style


class TrackedFrame(NamedTuple):
    """The objects of one frame, n of them. It can be unpacked: `frame, ids, masks, confidence`."""

    frame: int
    """Number of the frame, from 0."""
    ids: tuple[int, ...]
    """Object ids, ascending."""
    masks: np.ndarray
    """bool [n, H, W], one of each object; all false if the object is not there."""
    confidence: np.ndarray
    """float32 [n], from 0 to 1, see `timecycle.propagation.confidence.confidence`."""


class Tracker:
    """Track objects through a video file, or a folder of frames.

        tracker = timecycle.Tracker("clip.mp4")
        tracker.add_box(0, (120, 80, 200, 150))
        for frame, ids, masks, confidence in tracker.propagate():
            ...
        tracker.save_overlay("overlay.mp4")

    Args:
        video: a video file or a folder of images.
        protocol: a protocol, or the name of one of `PRESETS`.
        features: a callable or module from normalized images [B, 3, H, W] to features [B, D, h, w]; by default the
            shipped features, `Features`.
        extractor: instead of `features`, an extractor of this package.
        device: of the features; "auto" is a GPU if available.
        dtype: of the features: "float32", "bfloat16" or "float16".
        store: folder for masks; by default a temporary one, removed with the tracker.
        overrides: fields of the protocol to change, such as k=7.

    Objects are given by `add_box`, `add_points` and `add_mask`, at any frames. Each is followed in both directions from
    the first frame at which it is given; a later frame corrects it. Memory does not grow with the length of the video.

    Raises InputError if the video cannot be read, or an argument is invalid.
    """

    def __init__(
        self,
        video: str | Path,
        protocol: str | Protocol = "best",
        *,
        features: Extractor | None = None,
        extractor: FrameEncoder | None = None,
        device: str | torch.device = "auto",
        dtype: str = "float32",
        store: Path | None = None,
        **overrides: Any,
    ) -> None:
        if dtype not in DTYPES:
            raise InputError(f"dtype is {dtype!r}; expected one of {', '.join(DTYPES)}")
        rules = mask_protocol(protocol, **overrides)
        where = usable_device(device, f"device {device!r}")
        self.protocol = rules
        """The protocol, with its changed fields."""
        self.source: FrameSource = open_source(Path(video))
        """The frames of the video."""
        if extractor is None and features is not None:
            extractor = extractor_on(features, where, DTYPES[dtype])
        self.extractor: FrameEncoder = extractor or Features(DEFAULT, where, DTYPES[dtype], rules.mean, rules.std)
        """From images to features."""
        self.annotations = Annotations()
        """The masks that were given, or made from boxes and points."""
        self._root = store

    @functools.cached_property
    def store(self) -> MaskStore:
        """The masks of tracked frames."""
        if self._root is None:
            self._temporary = tempfile.TemporaryDirectory(prefix="timecycle-")  # removed with the tracker
            self._root = Path(self._temporary.name)
        return MaskStore(self._root)

    def add_mask(self, frame: int, mask: np.ndarray) -> list[int]:
        """Give objects by a mask.

        Args:
            frame: number of the frame, from 0.
            mask: [H, W] of the frame's size: ids of objects (0 is background), or bool.

        Returns:
            The ids of the mask's objects.

        An object that was given at an earlier frame is corrected: it is tracked from here on. Others are not affected.

        Raises InputError if the mask does not fit the frame, or holds no object, or one that this frame already has.
        """
        ids = ids_of(np.asarray(mask))
        size = self.source.size()
        if ids.shape != size:
            raise InputError(
                f"the mask of frame {frame} is {ids.shape[1]} x {ids.shape[0]}; expected {size[1]} x {size[0]}, the "
                "frame's size"
            )
        return self.annotations.add(frame, ids, "the mask")

    def add_box(self, frame: int, box: Sequence[float], id: int | None = None) -> np.ndarray:
        """Give an object by a box around it.

        Args:
            frame: number of the frame, from 0.
            box: x, y, width, height in pixels.
            id: of the object, 1 to 254; by default a new one.

        Returns:
            The mask made from the box by `mask_from_box`, bool [H, W].

        Raises InputError if the box lies outside the frame, and as `add_mask`.
        """
        image = frame_of(self.source, frame).rgb
        found = mask_from_box(image, box, self._features_of(image), self._beside(frame))
        return self._add(frame, found, id, f"the box {', '.join(f'{n:g}' for n in box)}")

    def add_points(
        self,
        frame: int,
        positive: Sequence[Sequence[float]],
        negative: Sequence[Sequence[float]] = (),
        id: int | None = None,
    ) -> np.ndarray:
        """Give an object by points on it, and points that are not on it.

        Args:
            frame: number of the frame, from 0.
            positive: x, y in pixels of points on the object, at least one.
            negative: the same of points that are not on it.
            id: of the object, 1 to 254; by default a new one.

        Returns:
            The mask made from the points by `mask_from_points`, bool [H, W].

        Raises InputError if a point lies outside the frame, and as `add_mask`.
        """
        image = frame_of(self.source, frame).rgb
        return self._add(frame, mask_from_points(image, positive, negative, self._features_of(image)), id, "the points")

    def _add(self, frame: int, mask: np.ndarray, id: int | None, what: str) -> np.ndarray:
        id = self.annotations.free_id() if id is None else id
        if not 1 <= id <= LARGEST_ID:
            raise InputError(f"id is {id}; expected 1 to {LARGEST_ID}")
        self.annotations.add(frame, mask.astype(np.uint8) * np.uint8(id), what)
        return mask

    def _beside(self, frame: int) -> np.ndarray | None:
        """The frame after one, or the frame before the last; None if there is no other."""
        for other in (frame + 1, frame - 1):
            try:
                return frame_of(self.source, other).rgb if other >= 0 else None
            except InputError:  # the video ends
                continue
        return None

    def propagate(self, first: int = 0, last: int | None = None, every: int = 1) -> Generator[TrackedFrame, None, None]:
        """Track, and yield each frame: those before the first annotated frame in reverse order, then the others.

        What an earlier call stored is removed first.

        Args:
            first: number of the first frame.
            last: number of the last frame; by default that of the video.
            every: track only every so many frames, and the annotated ones.

        Yields:
            Number, ids, masks and confidence of a frame.

        Raises InputError if nothing was added, an annotated frame is not between first and last or not in the video, or
        the video is damaged; frames that were yielded before remain stored.
        """
        span = Span(first, last, every)
        check_frames(self.annotations, self.source, span)
        self.store.clear()
        run = self.run(span)
        for walk in (run.backward(), run.forward()):
            with closing(walk):
                for step in walk:
                    ids = tuple(sorted(step.confidences))
                    masks = np.stack([step.mask == i for i in ids]) if ids else np.zeros((0, *step.mask.shape), bool)
                    yield TrackedFrame(
                        step.number, ids, masks, np.array([step.confidences[i] for i in ids], np.float32)
                    )

    def run(self, span: Span) -> TrackingRun:
        """The run over some frames. Raises InputError as `propagate`."""
        return TrackingRun(self.source, self.extractor, self.protocol, self.annotations, self.store, span)

    def stored(self, wanted: Wanted | None = None) -> Iterator[Step]:
        """The tracked frames with their masks, in order of time; by default all.

        Raises InputError if the video or a stored mask is damaged.
        """
        for frame in self.source.forward(wanted or Wanted()):
            if self.store.has(frame.number):
                known = self.store.confidences.get(frame.number, {})
                yield Step(*frame, self.store.mask(frame.number), known)

    def save_overlay(self, path: str | Path, style: Style = TRACKED) -> None:
        """Write a video of the tracked frames, with the objects painted on them.

        Args:
            path: a .mp4; it is replaced if it exists.
            style: how objects are painted; by default in color with their ids, and captions.

        Raises InputError if nothing was tracked, PyAV is not installed, or the file cannot be written.
        """
        numbers = self.store.numbers()
        if not numbers:
            raise InputError("nothing was tracked yet; expected propagate() to be consumed first")
        with growing(Path(path)) as partial, Outputs(self.source, Wishes(partial, style=style)) as outputs:
            for step in self.stored(Wanted(numbers[0], numbers[-1])):
                outputs.add(step)

    @torch.inference_mode()
    def _features_of(self, rgb: np.ndarray) -> Tensor:
        """Features [D, h, w] of a frame."""
        image = preprocess(rgb, self.protocol)
        self.extractor.begin(image)
        return self.extractor(image[None])[0]
