"""Overlays of masks on frames, as images and as a video."""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from fractions import Fraction
from pathlib import Path

import cv2
import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.data.masks import PALETTE
from timecycle.errors import InputError
from timecycle.files import not_written, synced, write_bytes

FRAMES_PER_SECOND = 24.0  # of DAVIS; the default


def paint(rgb: np.ndarray, mask: np.ndarray, opacity: float = 0.5) -> np.ndarray:
    """Tint and outline each object of a mask, uint8 [H, W] ids, on a frame, uint8 RGB [H, W, 3].

    Returns uint8 [H, W, 3].
    """
    tinted = cv2.addWeighted(rgb, 1.0 - opacity, PALETTE[mask], opacity, 0.0)
    painted = np.where(mask[..., None] > 0, tinted, rgb)
    for i in np.unique(mask[mask > 0]).tolist():
        contours, _ = cv2.findContours((mask == i).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        # A light outline is visible even if the tint resembles the frame.
        color = tuple(int(c) for c in 127 + PALETTE[i] // 2)
        painted = cv2.drawContours(np.ascontiguousarray(painted), contours, -1, color, 1, cv2.LINE_AA)
    return painted


def write_jpeg(path: Path, rgb: np.ndarray) -> None:
    """Write an image, uint8 RGB [H, W, 3], as JPEG, atomically."""
    write_bytes(path, jpeg_bytes(rgb))


class OverlayVideo:
    """An H.264 video, written frame by frame; the same frames give the same bytes on every machine.

    path: a new file, incomplete until `close`. size: width and height in pixels. fps: frames per second. Raises
    ImportError if PyAV is not installed; constructor and methods raise InputError if the file cannot be written.
    """

    def __init__(self, path: Path, size: tuple[int, int], fps: float = FRAMES_PER_SECOND) -> None:
        import av

        self._path = path
        with self._writing():
            path.parent.mkdir(parents=True, exist_ok=True)
            self._container = av.open(f"file:{path}", "w", format="mp4")  # so that no name is taken for a URL
        self._stream = self._container.add_stream("libx264", rate=Fraction(fps).limit_denominator(1001))
        # Chroma is stored at half size, so sides must be even.
        self._stream.width, self._stream.height = size[0] // 2 * 2, size[1] // 2 * 2
        self._stream.pix_fmt = "yuv420p"
        # By default x264 selects code by the CPU's instruction set, and results differ between machines and runs.
        self._stream.options = {"crf": "20", "preset": "veryfast", "x264-params": "cpu-independent=1"}

    @contextmanager
    def _writing(self) -> Iterator[None]:
        import av

        try:
            yield
        except (av.FFmpegError, OSError) as error:
            raise not_written(self._path, error) from None

    def add(self, rgb: np.ndarray) -> None:
        """Append a frame, uint8 RGB [H, W, 3]."""
        import av

        even = np.ascontiguousarray(rgb[: self._stream.height, : self._stream.width])
        with self._writing():
            self._container.mux(self._stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))

    def close(self) -> None:
        """Finish the video and flush it to disk."""
        with self._writing():
            self._container.mux(self._stream.encode())
            self._container.close()
            synced(self._path)

    def discard(self) -> None:
        """Abort and remove the file."""
        with suppress(InputError), self._writing():
            self._container.close()
        self._path.unlink(missing_ok=True)
