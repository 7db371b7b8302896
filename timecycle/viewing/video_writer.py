"""Videos written frame by frame: overlays for any player, and cut-outs with transparency. Does not import torch."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from timecycle.data.video import pyav
from timecycle.errors import InputError
from timecycle.files import not_written, synced
from timecycle.viewing.sound import Sound

FRAMES_PER_SECOND = 24.0  # of DAVIS; the default
CLOCK = Fraction(1, 90_000)  # seconds: unit of frame times if the rate varies, as in MPEG
THREADS = 4  # of an encoder: a fixed number, since x264's output depends on it
BT709 = 1  # in FFmpeg's lists of matrices, primaries and transfer characteristics
LIMITED = 1  # FFmpeg's "tv" range: luma from 16 to 235


@dataclass(frozen=True)
class Encoding:
    """How FFmpeg writes a video."""

    container: str
    codec: str
    pixels: str
    """Pixel format."""
    options: Mapping[str, str]
    """Of the codec."""
    container_options: Mapping[str, str] = field(default_factory=dict)
    even: bool = False
    """Whether sides must be even, since chroma is stored at half size."""


H264 = Encoding(
    "mp4",
    "libx264",
    "yuv420p",
    # By default x264 selects code by the CPU's instruction set, and results differ between machines and runs.
    {"crf": "20", "preset": "veryfast", "x264-params": "cpu-independent=1"},
    {"movflags": "+faststart"},  # so that browsers play before the whole file has arrived
    even=True,
)
ALPHA = {
    ".mov": Encoding("mov", "prores_ks", "yuva444p10le", {"profile": "4444", "vendor": "apl0", "alpha_bits": "8"}),
    ".webm": Encoding(
        "webm",
        "libvpx-vp9",
        "yuva420p",
        {"crf": "24", "b": "0", "deadline": "good", "cpu-used": "5", "row-mt": "1", "auto-alt-ref": "0"},
    ),
}
"""Encodings with transparency by a file's suffix."""


class VideoWriter:
    """A video, written frame by frame, with the sound of another file. Colors are BT.709, and tagged so.

    Args:
        path: a new file, incomplete until `close`.
        size: width and height in pixels.
        fps: frames per second, of frames without times.
        encoding: codec and container.
        pixels: FFmpeg's name of the format of frames, "rgb24" or "rgba".
        audio: a video file whose sound is copied; one without sound is fine.
        start, end: the part of its sound that is copied, in seconds from its first frame; None: as long as the written
            frames last.

    Constructor and methods raise InputError if the file cannot be written, PyAV is not installed, or its build lacks
    the encoder.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float,
        encoding: Encoding,
        pixels: str = "rgb24",
        *,
        audio: Path | None = None,
        start: float = 0.0,
        end: float | None = None,
    ) -> None:
        av = pyav()
        _check_encoder(path, encoding)
        self._path, self._size, self._encoding, self._pixels = path, size, encoding, pixels
        self._frame_time = 1 / Fraction(fps).limit_denominator(1001)
        self._frames = 0
        self._timed = False
        self._last = Fraction(0)
        """Time of the last frame in seconds."""
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            # "file:", so that no name is taken for a URL.
            self._container = av.open(
                f"file:{path}", "w", format=encoding.container, options=dict(encoding.container_options)
            )
        self._stream = self._container.add_stream(encoding.codec, rate=1 / self._frame_time)
        self._stream.width, self._stream.height = (n + (n % 2 if encoding.even else 0) for n in size)
        self._stream.pix_fmt = encoding.pixels
        self._stream.options = dict(encoding.options)
        context = self._stream.codec_context
        context.thread_type, context.thread_count = "FRAME", THREADS
        context.colorspace = context.color_primaries = context.color_trc = BT709
        context.color_range = LIMITED
        self._sound: Sound | None = None
        if audio is not None:
            try:
                self._sound = Sound(audio, self._container, start, end)
            except InputError:
                self.discard()
                raise

    @property
    def note(self) -> str | None:
        """A sentence for the user if the sound could not be copied to its end."""
        return self._sound.note if self._sound else None

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except (pyav().FFmpegError, OSError) as error:
            raise not_written(self._path, error) from None

    def add(self, image: np.ndarray, time: Fraction | None = None) -> None:
        """Append a frame, uint8 [H, W, 3] or, with alpha, [H, W, 4].

        time: when it is shown, in seconds from the start of the video, for all frames or for none. Raises InputError
        for an image of another size, and for a time that is not later than the last.
        """
        if image.shape[1::-1] != tuple(self._size):
            raise InputError(
                f"{self._path}: a frame has {image.shape[1]} x {image.shape[0]} pixels; expected {self._size[0]} x "
                f"{self._size[1]}, as the first"
            )
        frame = self._converted(image)
        if self._frames == 0:
            self._timed = time is not None
            if self._timed:
                self._stream.codec_context.time_base = CLOCK
                # With B-frames the container's duration would come from decoding times, and be wrong.
                self._stream.codec_context.max_b_frames = 0
        tick = CLOCK if self._timed else self._frame_time
        frame.time_base = tick
        frame.pts = self._frames if time is None else round(Fraction(time) / CLOCK)
        now = frame.pts * tick
        if self._frames and ((time is not None) != self._timed or now <= self._last):
            raise InputError(
                f"{self._path}: a frame at {'no time' if time is None else f'{float(time):.3f} s'} follows one at "
                f"{float(self._last):.3f} s; expected times that increase, for all frames or for none"
            )
        if self._timed and self._frames:
            self._frame_time = now - self._last
        self._last, self._frames = now, self._frames + 1
        with self._writing():
            if self._sound:
                self._sound.copy_until(now)
            self._container.mux(self._stream.encode(frame))

    def _converted(self, image: np.ndarray) -> Any:
        """A frame in the encoder's format, padded to even sides by its last row and column; the same on any machine."""
        av = pyav()
        below, beside = self._stream.height - image.shape[0], self._stream.width - image.shape[1]
        if below or beside:
            image = cv2.copyMakeBorder(image, 0, below, 0, beside, cv2.BORDER_REPLICATE)
        reformatter = av.video.reformatter
        flags = reformatter.Interpolation.BILINEAR
        for exact in ("ACCURATE_RND", "BITEXACT"):  # older releases of PyAV do not have them
            flags |= getattr(reformatter.Interpolation, exact, 0)
        return av.VideoFrame.from_ndarray(np.ascontiguousarray(image), format=self._pixels).reformat(
            format=self._encoding.pixels,
            dst_colorspace=reformatter.Colorspace.ITU709,
            dst_color_range=reformatter.ColorRange.MPEG,
            interpolation=flags,
        )

    def close(self) -> None:
        """Finish the video and flush it to disk."""
        with self._writing():
            self._container.mux(self._stream.encode())
            if self._sound:
                self._sound.copy_until(self._last + self._frame_time)
                self._sound.close()
            self._container.close()
            synced(self._path)

    def discard(self) -> None:
        """Abort and remove the file."""
        if self._sound:
            self._sound.close()
        with suppress(InputError), self._writing():
            self._container.close()
        self._path.unlink(missing_ok=True)


class OverlayVideo(VideoWriter):
    """An H.264 video in MP4 of RGB frames, for any player; the same frames give the same bytes on every machine.

    Odd sides are padded by a pixel. Arguments and exceptions as those of `VideoWriter`.
    """

    def __init__(
        self,
        path: Path,
        size: tuple[int, int],
        fps: float = FRAMES_PER_SECOND,
        *,
        audio: Path | None = None,
        start: float = 0.0,
        end: float | None = None,
    ) -> None:
        super().__init__(path, size, fps, H264, audio=audio, start=start, end=end)


class AlphaVideo(VideoWriter):
    """A video with transparency of RGBA frames (`cutouts.cut_out`): ProRes 4444 in .mov, VP9 in .webm.

    Arguments and exceptions as those of `VideoWriter`; InputError also for another suffix.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float = FRAMES_PER_SECOND) -> None:
        encoding = ALPHA.get(path.suffix.lower())
        if encoding is None:
            raise InputError(f"{path} is no name of a video with alpha; expected .mov (ProRes 4444) or .webm (VP9)")
        super().__init__(path, size, fps, encoding, "rgba")
        if encoding.container == "webm":
            self._stream.metadata["alpha_mode"] = "1"  # without it players ignore the second, transparent stream


def _check_encoder(path: Path, encoding: Encoding) -> None:
    """Raise InputError if PyAV's build lacks the encoder, or its pixel format."""
    av = pyav()
    try:
        formats = av.codec.Codec(encoding.codec, "w").video_formats or []
    except av.codec.codec.UnknownCodecError:
        formats = []
    if all(format_.name != encoding.pixels for format_ in formats):
        other = " or the other of .mov and .webm" if encoding.codec != H264.codec else ""
        raise InputError(
            f"{path} needs FFmpeg's encoder {encoding.codec} with {encoding.pixels}, which PyAV was built without; "
            f"expected a PyAV with it (pip install av){other}"
        )
