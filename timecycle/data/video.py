"""Video files: finding them in a folder, and decoding with checks for damage. Does not import torch."""

import functools
import io
import os
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from timecycle.data.images import check_pixels, most_pixels
from timecycle.errors import InputError, listing, printable

VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv",
}  # fmt: skip
"""Files with these suffixes count as videos without being opened, so that damaged ones are reported when read."""

LONGEST_STILL = 3600.0  # seconds, maximum duration of a frame
LONGEST_STILL_UNSTATED = 600.0  # the same in containers without a duration
LONGEST_STILL_BEYOND = 10.0  # the same beyond the container's duration
SLACK = 0.5  # seconds that a container's duration may exceed the end of its last frame
ODDEST_PIXEL = 16.0  # maximum aspect ratio of a pixel, either way; larger ones are taken for damage
NEARLY_SQUARE = 0.01  # deviation from square pixels that is due to rounding a scaled size to whole pixels
PROBED_BYTES = 1 << 17  # of a file, to detect its format

# Formats of FFmpeg that are not video, beside those whose names end in _pipe (images).
_TEXT = "adf bin idf tty txd xbin"
_DEVICES = "alsa fbdev kmsgrab lavfi oss video4linux2 v4l2 x11grab"
_LISTS = "concat dash hls imf rtsp sap sdp vobsub webm_dash_manifest"
_PICTURES = "alias_pix brender_pix fits ico image2"
_SUBTITLES = (
    "aqtitle ass jacosub lrc mcc microdvd mpl2 mpsub pjs realtext sami scc srt stl subviewer subviewer1 sup "
    "tedcaptions ttml vplayer webvtt"
)
_MOST_PIXELS_OF_FFMPEG = (1 << 31) - 1
_TIMES_NOT_STATED = {"mpeg", "mpegts", "ogg"}  # have no duration; FFmpeg takes it from the last timestamp
_STATED_FOR_DECODING = {"avi", "flv", "mov,mp4,m4a,3gp,3g2,mj2"}  # count the duration in decoding times


def video_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """The video files in a folder and its subfolders, and the other files, both sorted by path.

    Files with the suffix of a video, such as .mp4, count as videos, others if FFmpeg finds at least two frames. Links
    are followed, but no folder is entered twice; names with a leading dot are ignored.

    Raises InputError if the folder is missing or holds no video files.
    """
    if not folder.is_dir():
        raise InputError(f"{folder} is not a folder; expected one with video files")
    entered: set[str] = set()
    paths = []
    for root, folders, names in os.walk(folder, followlinks=True):
        folders.sort()
        if (place := os.path.realpath(root)) in entered:
            folders.clear()
            continue
        entered.add(place)
        paths += [Path(root, name) for name in names if not name.startswith(".")]
    videos: list[Path] = []
    others: list[Path] = []
    for path in sorted(paths):
        (videos if _is_video(path) else others).append(path)
    if not videos:
        found = f" ({skipped_files(others)})" if others else ""
        raise InputError(f"{folder} holds no video files{found}; expected some, such as .mp4 or .webm")
    return videos, others


def skipped_files(paths: list[Path]) -> str:
    """The number and first names of files that are not videos, in words."""
    names = listing(printable(path.name) for path in paths)
    return f"{len(paths)} other {'file' if len(paths) == 1 else 'files'} skipped: {names}"


def _is_video(path: Path) -> bool:
    if path.exists() and not path.is_file():  # a pipe or a device, whose reading might block
        return False
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with opened(path) as video:
            return len(list(islice(video.frames(), 2))) == 2
    except InputError:
        return False


@contextmanager
def opened(path: Path) -> Iterator["Video"]:
    """Open a video file, whose format is detected by content alone; frames are decoded in one thread.

    Only this file is opened, no other that it refers to, and no playlist. It is closed at the end of the `with` block.

    Yields:
        The video.

    Raises InputError if the file cannot be read, holds no video, or has more pixels per frame than the environment
    variable TIMECYCLE_MAX_PIXELS allows, and for FFmpeg's errors within the block.
    """
    av = pyav()
    container = None
    options = {
        "format_whitelist": _formats(),
        "protocol_whitelist": "none",  # for files that this one refers to
        "formatprobesize": str(PROBED_BYTES),
    }
    try:
        with io.FileIO(path) as file:
            file.name = ""  # else FFmpeg would use the suffix as well
            # Metadata may be in any encoding.
            with av.open(file, options=options, metadata_errors="replace") as container:
                stream = container.streams.best("video")
                cover = stream is not None and stream.disposition & av.stream.Disposition.attached_pic
                if stream is None or cover or stream.codec_context is None:
                    raise InputError(f"{path} holds no video that can be decoded; expected a video file")
                context: Any = stream.codec_context
                context.thread_count = 1  # callers read several videos at a time
                check_pixels(path, context.width or 1, context.height or 1)  # 0 if not known yet
                context.options |= {"max_pixels": str(min(most_pixels(), _MOST_PIXELS_OF_FFMPEG))}  # of later frames
                yield Video(path, container, stream)
    except (av.FFmpegError, OSError) as error:
        other_kind = container is None and isinstance(error, av.ArgumentError)
        reason = "an image, a playlist or text" if other_kind else error.strerror
        raise InputError(f"{path} is damaged or no video ({reason}); expected a video file") from None


def pyav() -> Any:
    """The PyAV module. Raises InputError where it is not installed."""
    try:
        import av
    except ImportError:
        raise InputError("PyAV, which reads video files, is not installed; expected it (pip install av)") from None
    return av


@functools.cache
def _formats() -> str:
    """The formats that may be videos, as FFmpeg's format_whitelist."""
    av = pyav()
    others = set(f"{_TEXT} {_DEVICES} {_LISTS} {_PICTURES} {_SUBTITLES}".split())
    return ",".join(sorted(name for name in av.formats_available - others if not name.endswith("_pipe")))


class Video:
    """The best video stream of an open file, see `opened`. Times are in stream ticks of `clock.tick` seconds."""

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self.path, self.container, self.stream = path, container, stream
        self._matrices: list[bytes | None] = []  # the display matrix, once a frame was seen
        self.clock = Clock(path, container, stream)

    def packets(self) -> Iterator[Any]:
        """The stream's packets. Raises InputError for a packet marked as damaged."""
        for packet in self.container.demux():  # of all streams, since the container's duration covers all of them
            self.clock.note(packet)
            if packet.stream.index == self.stream.index:
                yield packet

    def frames(self, start: int | None = None, seek: bool = False) -> Iterator[Any]:
        """Decoded frames in presentation order, with their times in `pts`.

        Args:
            start: earlier frames are skipped, even if damaged.
            seek: seek to `start` first; no frames if the seek lands behind it.

        Raises:
            InputError: a frame is damaged, even if FFmpeg conceals it, changes its size or has no usable time; or,
                without `seek`, the file ends earlier than its header says or holds no frames.
        """
        if seek:
            self.container.seek(start, stream=self.stream)
        size = None
        landed = not seek
        for packet in self.packets():
            for frame in packet.decode():
                after = self.clock.after
                frame.pts = self.clock.time(frame)
                if start is not None and frame.pts > start and not landed:
                    return
                landed = True
                if start is not None and frame.pts < start:
                    continue
                if frame.is_corrupt:
                    raise InputError(f"{self.path} is damaged {after}; expected a complete video file")
                size = size or (frame.width, frame.height)
                if size != (frame.width, frame.height):
                    raise InputError(f"{self.path} changes its size at {frame.time:.2f} s; expected one size")
                yield frame
        if not seek:
            self.clock.finish()

    def times(self) -> tuple[np.ndarray, bool]:
        """Presentation times of all frames, int64 [n], ascending; and whether seeking works. Reads the whole file.

        Decodes only files whose packets have no such times: AVI and raw streams.
        Raises InputError as `frames`, except for damage that only decoding reveals.
        """
        found = [packet.pts for packet in self.packets() if packet.size and not packet.is_discard]
        if self.clock.by_decoding or None in found:
            with opened(self.path) as anew:
                return np.unique(np.array([frame.pts for frame in anew.frames()], np.int64)), False
        times = np.unique(np.array(found, np.int64))
        for time in times.tolist():
            self.clock.advance(time)
        self.clock.finish()
        # FFmpeg guesses the times of an MPEG program stream, and guesses differently after a seek.
        return times, self.container.format.name != "mpeg"

    def upright(self, image: np.ndarray, frame: Any) -> np.ndarray:
        """The image [H, W, 3] of a decoded frame, turned as the display matrix of the video's first frame says."""
        if not self._matrices:
            # Of one frame only: with its side data a frame is freed by the next garbage collection, not at once.
            matrix = frame.side_data.get("DISPLAYMATRIX")
            self._matrices.append(None if matrix is None else bytes(matrix))
        return upright(image, self._matrices[0])

    def scaled_size(self, height: int, width: int, side: int) -> tuple[int, int]:
        """Height and width with square pixels of frames that are `height` x `width`, of a short side of at most `side`.

        A missing or absurd pixel aspect ratio counts as square.
        """
        ratio = float(self.stream.sample_aspect_ratio or 1)
        square = abs(ratio - 1) <= NEARLY_SQUARE or not 1 / ODDEST_PIXEL <= ratio <= ODDEST_PIXEL
        return square_size(height, width, 1.0 if square else ratio, side)


class Clock:
    """Presentation times of a stream's frames, and checks of times and duration for damage.

    `note` must be called for every packet of the container, `time` for every frame in order (or `advance` if its time
    is known), and `finish` at the end. Each raises InputError for a damaged file.
    """

    def __init__(self, path: Path, container: Any, stream: Any) -> None:
        self._path, self._index = path, stream.index
        self.tick = float(stream.time_base)
        """Seconds per tick."""
        name = container.format.name
        self.by_decoding = name == "avi"
        """Whether to use decoding times: AVI has no presentation times, and FFmpeg guesses them."""
        self._counts_decoding = name in _STATED_FOR_DECODING
        self._length, self._start = ((seconds or 0) / 1e6 for seconds in (container.duration, container.start_time))
        """The container's duration and start time, seconds."""
        self._stated = 0.0 if name in _TIMES_NOT_STATED else self._length
        self._promised = self._length if len(container.streams) == 1 else 0.0
        """The stream's duration according to the container, seconds; 0 if unknown."""
        if stream.duration:
            self._promised = stream.duration * self.tick
        self._step = max(1, round(1 / (float(stream.average_rate or 25) * self.tick)))
        self._last: int | None = None
        self._longest = 0  # ticks between two frames, at most
        self._first: int | None = None  # ticks: the stream's first packet, and
        self._furthest = 0  # its end, in the times in which the container counts durations
        self._end = 0  # ticks: the stream's end in presentation times
        self._all_end = 0.0  # seconds: the end of all streams

    def note(self, packet: Any) -> None:
        """Take a packet of any stream into account, before its frames are decoded."""
        shown = packet.dts if self.by_decoding else packet.pts
        if shown is not None:
            self._all_end = max(self._all_end, float((shown + (packet.duration or 0)) * packet.time_base))
        if packet.stream.index != self._index:
            return
        if packet.is_corrupt:
            raise InputError(f"{self._path} is damaged {self.after}; expected a complete video file")
        if not packet.size or packet.is_discard:
            return  # packets to be discarded, left by an edit, only serve to decode other frames
        if shown is not None:
            self._end = max(self._end, shown + (packet.duration or 0))
        time = packet.dts if self._counts_decoding else packet.pts
        if time is not None:
            self._first = time if self._first is None else min(self._first, time)
            self._furthest = max(self._furthest, time + (packet.duration or 0))

    @property
    def after(self) -> str:
        """The current position, for error messages."""
        return f"after {(self._last or 0) * self.tick:.2f} s"

    @property
    def _reached(self) -> float:
        """Seconds from the first packet to the end of the last."""
        return 0.0 if self._first is None else (self._furthest - self._first) * self.tick

    @property
    def _longest_still(self) -> float:
        """Maximum duration of a frame at this point, seconds."""
        if not self._stated:
            return LONGEST_STILL_UNSTATED
        beyond = self._reached > self._stated + max(1.0, 0.05 * self._stated)
        return LONGEST_STILL_BEYOND if beyond else LONGEST_STILL

    def time(self, frame: Any) -> int:
        """A decoded frame's time in ticks; without one, that of the previous frame plus its duration."""
        time = frame.dts if self.by_decoding else frame.pts
        if time is None:
            time = 0 if self._last is None else self._last + (frame.duration or self._step)
        self.advance(time)
        return time

    def advance(self, time: int) -> None:
        """Advance to the next frame, at `time`."""
        if self._last is not None:
            self._longest = max(self._longest, time - self._last)
        if self._longest * self.tick > self._longest_still:
            raise InputError(f"{self._path} has no usable time for the frame {self.after}; expected one for each frame")
        self._last = time

    def finish(self) -> None:
        """Check the duration after the last packet and frame."""
        if self._last is None:
            raise InputError(f"{self._path} is damaged or ends early; expected a complete video file")
        if max(self._longest, self._end - self._last) * self.tick > self._longest_still:
            raise InputError(
                f"{self._path} shows a frame for longer than its own duration; expected a complete video file"
            )
        # Durations in headers are slightly wrong in many intact files, and guessed in files without times.
        stated = self._length + self._start
        ends = [(self._all_end, stated, max(SLACK, 0.05 * self._length)), (self._reached, self._promised, SLACK)]
        for end, stated, slack in ends:
            if 0 < end < stated - slack:
                raise InputError(f"{self._path} ends at {end:.2f} s of {stated:.2f} s; expected a complete video file")


def square_size(height: int, width: int, ratio: float, side: int) -> tuple[int, int]:
    """Height and width of frames resampled to square pixels, their short side scaled down to `side`.

    ratio: aspect ratio, width / height, of the pixels of the `height` x `width` frames.
    """
    width = max(1, round(width * ratio))
    short = max(side, min(height, width))
    return max(1, round(height * side / short)), max(1, round(width * side / short))


def upright(image: np.ndarray, matrix: bytes | None) -> np.ndarray:
    """An image [H, W, 3], rotated and mirrored by multiples of 90 degrees as a display matrix says, if there is one.

    Source: the matrix of ISO/IEC 14496-12: x' = a x + c y, y' = b x + d y.
    """
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(matrix, np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            image, to_right, down = image.transpose(1, 0, 2), c, b
        else:
            to_right, down = a, d
        image = image[:: -1 if down < 0 else 1, :: -1 if to_right < 0 else 1]
    return np.ascontiguousarray(image)
