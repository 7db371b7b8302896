"""What tracking writes beside the masks, frame by frame in order of time: overlay video, cut-outs, COCO, CSV."""

from collections import deque
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar

from timecycle.data.source import FrameSource
from timecycle.tracking.coco_file import CocoWriter, Segmentation
from timecycle.tracking.exports import AlphaFrames, CsvWriter, object_rows
from timecycle.tracking.run import Step
from timecycle.viewing.cutouts import cut_out
from timecycle.viewing.overlays import OverlayVideo, Style, caption_of, paint
from timecycle.viewing.video_writer import AlphaVideo

T = TypeVar("T")

TRACKED = Style(ids=True)
"""How tracked objects are shown by default."""

WRITE_BEHIND = 4
"""Most frames that wait to be painted and encoded."""


@dataclass(frozen=True)
class Wishes:
    """The files to write, which must not exist; None: not this one."""

    overlay: Path | None = None
    """A .mp4."""
    alpha: Path | None = None
    """A folder of PNG files, or a .mov or .webm."""
    coco: Path | None = None
    segmentation: Segmentation = "rle"
    """Of the annotations in `coco`."""
    csv: Path | None = None
    style: Style = TRACKED


class Outputs:
    """Write files of tracked frames, in a thread. A context manager.

    At its end, also after an error, the files hold the frames that were added. Methods raise InputError if a file
    cannot be written.
    """

    def __init__(self, source: FrameSource, wishes: Wishes, every: int = 1) -> None:
        self._source, self._wishes = source, wishes
        self._rate = source.rate / every
        self._writers: list[Any] = []
        self._add: list[Callable[[Step], None]] = []
        self._pool = ThreadPoolExecutor(1)
        self._waiting = deque[Future[None]]()
        self.notes: list[str] = []

    def add(self, step: Step) -> None:
        """Write one frame, later than the one before."""
        self._waiting.append(self._pool.submit(self._write, step))
        while len(self._waiting) > WRITE_BEHIND:
            self._waiting.popleft().result()

    def _write(self, step: Step) -> None:
        if not self._add:
            self._open(step)
        for add in self._add:
            add(step)

    def _open(self, first: Step) -> None:
        """Open the files, whose sizes the first frame tells."""
        wishes, rate = self._wishes, float(self._rate)
        size = first.rgb.shape[1], first.rgb.shape[0]
        if wishes.overlay:
            sound = self._source.path if self._source.has_audio else None
            video = self._writer(OverlayVideo(wishes.overlay, size, rate, audio=sound, start=float(first.time)))

            def show(step: Step) -> None:
                caption = caption_of(step.number, step.confidences)
                video.add(paint(step.rgb, step.mask, wishes.style, caption), step.time - first.time)

            self._add.append(show)
        if wishes.alpha and wishes.alpha.suffix:
            cut = self._writer(AlphaVideo(wishes.alpha, size, rate))
            self._add.append(lambda step: cut.add(cut_out(step.rgb, step.mask), step.time - first.time))
        elif wishes.alpha:
            images = AlphaFrames(wishes.alpha)
            self._add.append(lambda step: images.add(step.number, step.rgb, step.mask))
        if wishes.csv:
            table = self._writer(CsvWriter(wishes.csv))
            self._add.append(lambda step: table.add(_rows(step)))
        if wishes.coco:
            annotations = self._writer(CocoWriter(wishes.coco, wishes.segmentation))
            self._add.append(
                lambda step: annotations.add(
                    step.number, step.mask, f"{step.number:05d}.png", float(step.time), step.confidences
                )
            )

    def _writer(self, writer: T) -> T:
        self._writers.append(writer)
        return writer

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            while self._waiting:
                self._waiting.popleft().result()
        finally:
            self._pool.shutdown(cancel_futures=True)
            for writer in self._writers:
                writer.close()
                if note := getattr(writer, "note", None):
                    self.notes.append(note)


def _rows(step: Step) -> list[tuple[str, ...]]:
    return object_rows(step.number, float(step.time), step.mask, sorted(step.confidences), step.confidences)
