"""Video files: which of a folder's files are, how one is opened, when its frames are shown and how. Knows no torch."""

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
from timecycle.errors import InputError

VIDEO_SUFFIXES = {
    ".3gp", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv",
}  # fmt: skip
"""Of files that are taken for videos without a look inside, so that damaged ones are named where they are read."""

LONGEST_STILL = 3600.0  # seconds that a frame may be shown
LONGEST_STILL_UNSTATED = 600.0  # the same where the container does not say how long the video is
LONGEST_STILL_BEYOND = 10.0  # the same where it says that the video is shorter
ODDEST_PIXEL = 16.0  # times as wide as high, or as high as wide; beyond, the ratio is taken for damaged
NEARLY_SQUARE = 0.01  # as programs state it that scaled a picture to whole pixels and kept its aspect ratio
SHOWN_NAMES = 3
PROBED_BYTES = 1 << 17  # of a file, to know its format by

# FFmpeg's formats, but for names that end in _pipe (pictures), that are no video: text, devices, lists of other files.
_TEXT = "adf bin idf tty txd xbin"
_DEVICES = "alsa fbdev kmsgrab lavfi oss video4linux2 v4l2 x11grab"
_LISTS = "concat dash hls imf rtsp sap sdp vobsub webm_dash_manifest"
_PICTURES = "alias_pix brender_pix fits ico image2"
_SUBTITLES = (
    "aqtitle ass jacosub lrc mcc microdvd mpl2 mpsub pjs realtext sami scc srt stl subviewer subviewer1 sup "
    "tedcaptions ttml vplayer webvtt"
)
_MOST_PIXELS_OF_FFMPEG = (1 << 31) - 1
_TIMES_NOT_STATED = {"mpeg", "mpegts", "ogg"}  # FFmpeg has their length from the last timestamp
_STATED_FOR_DECODING = {"avi", "flv", "mov,mp4,m4a,3gp,3g2,mj2"}  # their length is counted in times of decoding


def video_files(folder: Path) -> tuple[list[Path], list[Path]]:
    """Every video file in a folder and its subfolders, and the files that are none, each in the order of their paths.

    Those with one of VIDEO_SUFFIXES count as videos; others are looked into, and do if they hold a moving picture of
    any format that FFmpeg reads. Links are followed, but no folder is entered twice; names with a leading dot are
    passed over. Raises InputError if the folder is missing or holds no video files.
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
        found = f" ({passed_over(others)})" if others else ""
        raise InputError(f"{folder} holds no video files{found}; expected some, such as .mp4 or .webm")
    return videos, others


def passed_over(paths: list[Path]) -> str:
    """A few words that name the first of some files and count them all."""
    names = ", ".join(on_one_line(path.name) for path in paths[:SHOWN_NAMES])
    more = f" and {len(paths) - SHOWN_NAMES} more" if len(paths) > SHOWN_NAMES else ""
    return f"{len(paths)} other {'file' if len(paths) == 1 else 'files'} passed over: {names}{more}"


def on_one_line(text: str) -> str:
    """A file's name may hold line breaks, and bytes that are no text."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def _is_video(path: Path) -> bool:
    if path.exists() and not path.is_file():  # a pipe or a device, which might never answer
        return False
    if path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with opened(path) as (container, stream):
            return sum(not frame.is_corrupt for frame in islice(container.decode(stream), 2)) == 2
    except InputError:
        return False


@contextmanager
def opened(path: Path) -> Iterator[tuple[Any, Any]]:
    """A file's container and best video stream, known by content alone and decoded in one thread.

    Playlists are not opened, and nothing but the file itself is. Raises InputError if the file cannot be read, holds
    no video, or one of more pixels than `most_pixels`, and for what FFmpeg refuses within the block.
    """
    import av

    container = None
    options = {
        "format_whitelist": _formats(),
        "protocol_whitelist": "none",  # of other files that this one may name
        "formatprobesize": str(PROBED_BYTES),
    }
    try:
        with io.FileIO(path) as file:
            file.name = ""  # else FFmpeg would go by the suffix as well
            # Tags may be in any encoding.
            with av.open(file, options=options, metadata_errors="replace") as container:
                stream = container.streams.best("video")
                cover = stream is not None and stream.disposition & av.stream.Disposition.attached_pic
                if stream is None or cover or stream.codec_context is None:
                    raise InputError(f"{path} holds no video that can be decoded; expected a video file")
                context: Any = stream.codec_context
                context.thread_count = 1  # callers read several videos at a time
                check_pixels(path, context.width or 1, context.height or 1)  # 0 if it is not known yet
                context.options |= {"max_pixels": str(min(most_pixels(), _MOST_PIXELS_OF_FFMPEG))}  # of later frames
                yield container, stream
    except (av.FFmpegError, OSError) as error:
        other_kind = container is None and isinstance(error, av.ArgumentError)
        reason = "a picture, a playlist or text" if other_kind else error.strerror
        raise InputError(f"{path} is damaged or no video ({reason}); expected a video file") from None


@functools.cache
def _formats() -> str:
    """Names of the formats that may be videos, as FFmpeg takes them."""
    import av

    others = set(f"{_TEXT} {_DEVICES} {_LISTS} {_PICTURES} {_SUBTITLES}".split())
    return ",".join(sorted(name for name in av.formats_available - others if not name.endswith("_pipe")))


class Clock:
    """When the frames of a stream are shown; and how long one may be, before only damage explains it."""

    def __init__(self, container: Any, stream: Any) -> None:
        self.tick = float(stream.time_base)
        """Seconds of a tick."""
        name = container.format.name
        self.by_decoding = name == "avi"
        """Whether times are those of decoding, since AVI has no others; FFmpeg guesses times of showing."""
        self._counts_decoding = name in _STATED_FOR_DECODING
        self._stated = 0.0 if name in _TIMES_NOT_STATED else (container.duration or 0) / 1e6
        self._step = max(1, round(1 / (float(stream.average_rate or 25) * self.tick)))
        self._last: int | None = None
        self._first, self._furthest = None, 0

    def note(self, packet: Any) -> None:
        """Take in how far a packet of the stream reaches, before its frames are asked for."""
        time = packet.dts if self._counts_decoding else packet.pts
        if time is not None and packet.size and not packet.is_discard:
            self._first = time if self._first is None else min(self._first, time)
            self._furthest = max(self._furthest, time + (packet.duration or 0))

    @property
    def reached(self) -> float:
        """Seconds from the first noted packet to the end of the farthest."""
        return 0.0 if self._first is None else (self._furthest - self._first) * self.tick

    @property
    def longest_still(self) -> float:
        """Seconds that a frame may be shown, by what was noted so far."""
        if not self._stated:
            return LONGEST_STILL_UNSTATED
        beyond = self.reached > self._stated + max(1.0, 0.05 * self._stated)
        return LONGEST_STILL_BEYOND if beyond else LONGEST_STILL

    def time(self, frame: Any) -> int:
        """When a decoded frame is shown, in ticks. Wants the frames in order.

        One of which the container does not say it follows the one before as the stream's rate has it.
        """
        time = frame.dts if self.by_decoding else frame.pts
        if time is None:
            time = 0 if self._last is None else self._last + (frame.duration or self._step)
        self._last = time
        return time


def decoded_times(path: Path) -> np.ndarray:
    """When the frames of a video are shown, by its `Clock`: int64 [n], ascending. Decodes all of it.

    What cannot be decoded is left out. Raises InputError as `opened` does.
    """
    import av

    times: list[int] = []
    with opened(path) as (container, stream):
        clock = Clock(container, stream)
        for packet in container.demux(stream):
            try:
                times += map(clock.time, packet.decode())
            except av.FFmpegError:
                continue
    return np.unique(np.array(times, np.int64))


def square_size(height: int, width: int, ratio: float, side: int) -> tuple[int, int]:
    """Height and width of frames with square pixels, their short side scaled down to at most `side`.

    ratio: how many times as wide as high the pixels of the frames of `height` x `width` are.
    """
    width = max(1, round(width * ratio))
    short = max(side, min(height, width))
    return max(1, round(height * side / short)), max(1, round(width * side / short))


def pixel_ratio(stream: Any) -> float:
    """How many times as wide as high a stream's pixels are; 1 if it does not say, or says what cannot be."""
    ratio = float(stream.sample_aspect_ratio or 1)
    square = abs(ratio - 1) <= NEARLY_SQUARE
    return 1.0 if square or not 1 / ODDEST_PIXEL <= ratio <= ODDEST_PIXEL else ratio


def upright(picture: np.ndarray, frame: Any) -> np.ndarray:
    """A picture [H, W, 3] of a decoded frame as a viewer shows it, turned and mirrored as the frame's metadata say.

    Source: the matrix of ISO/IEC 14496-12: x' = a x + c y, y' = b x + d y, of which the nearest multiple of 90 degrees
    counts.
    """
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is not None:
        a, b, _, c, d = np.frombuffer(bytes(matrix), np.int32)[:5].tolist()
        if abs(b) + abs(c) > abs(a) + abs(d):
            picture, to_right, down = picture.transpose(1, 0, 2), c, b
        else:
            to_right, down = a, d
        picture = picture[:: -1 if down < 0 else 1, :: -1 if to_right < 0 else 1]
    return np.ascontiguousarray(picture)
