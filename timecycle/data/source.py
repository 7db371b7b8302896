"""The frames of one video, a file or a folder of images, read forward or backward in bounded memory. Without torch."""

from collections.abc import Iterator
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from timecycle.data.images import open_image, read_rgb, shown_size
from timecycle.data.sequences import check_sizes, frame_files, prepared_fps
from timecycle.data.video import Video, opened
from timecycle.errors import InputError

DEFAULT_RATE = Fraction(24)
"""Frames per second of folders of frames that do not say, as of DAVIS."""
CHUNK_BYTES = 128 << 20
"""Memory for decoded frames of a video that is read backward."""
UNBOUNDED = 1 << 15
"""A short side, in pixels, that no frame exceeds."""


class Frame(NamedTuple):
    """One frame of a video."""

    number: int
    """Position in the video, from 0."""
    time: Fraction
    """Presentation time in seconds, from 0 at frame 0."""
    rgb: np.ndarray
    """uint8 [H, W, 3], upright, with square pixels."""


@dataclass(frozen=True)
class Wanted:
    """Which frames of a video to read, by number."""

    first: int = 0
    """The first one."""
    last: int | None = None
    """The last one; None: to the end."""
    every: int = 1
    """One of so many frames is wanted."""
    origin: int = 0
    """Frames whose distance from this one is a multiple of `every` are wanted."""
    more: frozenset[int] = frozenset()
    """Further wanted frames, if between `first` and `last`."""

    def __contains__(self, number: int) -> bool:
        if number < self.first or (self.last is not None and number > self.last):
            return False
        return (number - self.origin) % self.every == 0 or number in self.more


class FrameSource(Protocol):
    """The frames of one video, a file or a folder of images: what `open_source` returns."""

    path: Path
    """The file or folder."""
    rate: Fraction
    """Frames per second, on average."""
    expected: int | None
    """Number of frames that the header promises, if it does: not exact."""
    has_audio: bool
    """Whether the file has sound."""

    def size(self) -> tuple[int, int]:
        """Height and width of the frames in pixels."""

    def count(self) -> int:
        """Exact number of frames. Reads a whole file, without decoding it if possible."""

    def forward(self, wanted: Wanted) -> Iterator[Frame]:
        """The wanted frames in order. Raises InputError, possibly after some frames, if the video is damaged."""

    def backward(self, wanted: Wanted) -> Iterator[Frame]:
        """The wanted frames in reverse order; `wanted.last` must be given."""


def open_source(path: Path) -> FrameSource:
    """The frames of a video file or of a folder of images.

    Raises InputError if there is neither, or the file holds no video.
    """
    if not path.exists():
        raise InputError(f"{path} does not exist; expected a video file, or a folder of images")
    return FolderSource(path) if path.is_dir() else VideoSource(path)


def frame_of(source: FrameSource, number: int) -> Frame:
    """One frame of a video, by its number from 0. Raises InputError if the video is shorter."""
    only = Wanted(number, number)
    for frame in source.backward(only) if number else source.forward(only):
        return frame
    raise InputError(f"{source.path} has no frame {number}; expected one of its frames, 0 to {source.count() - 1}")


class FolderSource:
    """A folder of images, in natural order of their names."""

    has_audio = False

    def __init__(self, path: Path) -> None:
        self.path = path
        self.files, self.notes = frame_files(path)
        check_sizes(self.files)
        fps = prepared_fps(path)
        self.rate = DEFAULT_RATE if fps is None else Fraction(fps).limit_denominator(1001)
        self.expected: int | None = len(self.files)

    def size(self) -> tuple[int, int]:
        """As `FrameSource.size`."""
        with open_image(self.files[0]) as image:
            width, height = shown_size(image)
        return height, width

    def count(self) -> int:
        """As `FrameSource.count`."""
        return len(self.files)

    def forward(self, wanted: Wanted) -> Iterator[Frame]:
        """As `FrameSource.forward`."""
        return (self._frame(i) for i in range(wanted.first, len(self.files)) if i in wanted)

    def backward(self, wanted: Wanted) -> Iterator[Frame]:
        """As `FrameSource.backward`."""
        assert wanted.last is not None
        last = min(wanted.last, len(self.files) - 1)
        return (self._frame(i) for i in range(last, wanted.first - 1, -1) if i in wanted)

    def _frame(self, number: int) -> Frame:
        return Frame(number, number / self.rate, read_rgb(self.files[number]))


class VideoSource:
    """A video file. Frames are numbered in presentation order."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._scanned: tuple[np.ndarray, bool] | None = None
        self._size: tuple[int, int] | None = None
        with opened(path) as video:
            stream = video.stream
            self.rate = Fraction(stream.average_rate or stream.guessed_rate or DEFAULT_RATE)
            total = stream.duration * stream.time_base if stream.duration else (video.container.duration or 0) / 1e6
            self.expected: int | None = stream.frames or round(float(total) * float(self.rate)) or None
            self.has_audio = any(other.type == "audio" for other in video.container.streams)

    def size(self) -> tuple[int, int]:
        """As `FrameSource.size`."""
        if self._size is None:
            height, width, _ = frame_of(self, 0).rgb.shape
            self._size = height, width
        return self._size

    def count(self) -> int:
        """As `FrameSource.count`."""
        return len(self._times)

    @property
    def _times(self) -> np.ndarray:
        return self._scan()[0]

    def _scan(self) -> tuple[np.ndarray, bool]:
        """Presentation times of all frames in stream ticks, int64 [n], ascending; whether seeking works."""
        if self._scanned is None:
            with opened(self.path) as video:
                self._scanned = video.times()
        return self._scanned

    def forward(self, wanted: Wanted) -> Iterator[Frame]:
        """As `FrameSource.forward`. The file is read once, from its beginning, so it may still grow."""
        if wanted.last is not None and wanted.last < wanted.first:
            return
        with opened(self.path) as video:
            start: int | None = None
            for number, frame in enumerate(video.frames()):
                start = frame.pts if start is None else start
                if number in wanted:
                    yield Frame(number, (frame.pts - start) * video.stream.time_base, _rgb(video, frame))
                if number == wanted.last:
                    return

    def backward(self, wanted: Wanted) -> Iterator[Frame]:
        """As `FrameSource.backward`. The file is decoded in pieces, each from the key frame before it."""
        assert wanted.last is not None
        last = min(wanted.last, len(self._times) - 1)
        piece = 1
        while last >= wanted.first:
            first = max(wanted.first, last - piece + 1)
            frames = self._piece(first, last, wanted)
            yield from reversed(frames)
            if frames:
                piece = max(1, CHUNK_BYTES // frames[0].rgb.nbytes)
            last = first - 1

    def _piece(self, first: int, last: int, wanted: Wanted) -> list[Frame]:
        """The wanted frames from `first` to `last`."""
        times, seekable = self._times.tolist(), self._scan()[1]
        for seek in (True, False) if seekable else (False,):
            frames, number = list[Frame](), first
            with opened(self.path) as video:
                for frame in video.frames(times[first], seek):
                    if frame.pts < times[number]:
                        continue
                    if number in wanted:
                        time = (times[number] - times[0]) * video.stream.time_base
                        frames.append(Frame(number, time, _rgb(video, frame)))
                    number += 1
                    if number > last:
                        return frames
        raise InputError(f"{self.path} is damaged or ends early; expected a complete video file")


def _rgb(video: Video, frame: Any) -> np.ndarray:
    """A decoded frame as uint8 RGB [H, W, 3], upright, with square pixels."""
    height, width = video.scaled_size(frame.height, frame.width, UNBOUNDED)
    if (height, width) == (frame.height, frame.width):
        return video.upright(frame.to_ndarray(format="rgb24"), frame)
    return video.upright(frame.to_ndarray(format="rgb24", width=width, height=height, interpolation="BICUBIC"), frame)
