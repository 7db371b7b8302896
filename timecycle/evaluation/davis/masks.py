"""Write the masks of DAVIS sequences to a results folder: propagate frame by frame, paint overlays, write files."""

import hashlib
import importlib.util
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import numpy as np
import torch

from timecycle.data.images import jpeg_bytes
from timecycle.data.masks import mask_png, object_ids, read_mask
from timecycle.data.sequences import Sequence
from timecycle.evaluation.davis.results import ResultsFolder
from timecycle.files import hash_of, inside, partial_path, synced, writing
from timecycle.manifest import OVERLAYS, Hashes, Manifest
from timecycle.progress import Progress, say, say_detail
from timecycle.propagation.frames import FrameEncoder
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.video import PropagatedFrame, labels_of_masks, propagate_frames
from timecycle.viewing.overlays import paint
from timecycle.viewing.video_writer import FRAMES_PER_SECOND, OverlayVideo

OVERLAY_IMAGES = 6  # of a sequence, evenly spaced from its first frame to its last
WRITE_BEHIND = 4
"""Most frames that wait to be written."""


class SequenceWriter:
    """Writes masks and overlays of one sequence to a hidden folder; `finish` moves them to the results folder.

    Methods raise InputError if a file cannot be written, for example because the disk is full.
    """

    def __init__(self, folder: ResultsFolder, sequence: Sequence, video: bool, images: bool = True) -> None:
        self._folder, self._sequence = folder, sequence
        self._work = partial_path(folder.path / sequence.name)
        self._hashes: Hashes = {}
        """Hashes of the written files by path, which is the same below the hidden folder and the results folder."""
        with writing(folder.path):
            (self._work / sequence.name).mkdir(parents=True)
            (self._work / OVERLAYS / sequence.name).mkdir(parents=True)
        last = len(sequence.frames) - 1
        self._with_image = {round(i * last / (OVERLAY_IMAGES - 1)) for i in range(OVERLAY_IMAGES)} if images else set()
        self._video_wanted = video
        self._video: OverlayVideo | None = None

    def add(self, index: int, rgb: np.ndarray, mask: np.ndarray) -> None:
        """Write the next frame's mask, uint8 [H, W], and overlays of it on the frame, uint8 RGB [H, W, 3]."""
        stem = self._sequence.frames[index].stem
        self._write(f"{self._sequence.name}/{stem}.png", mask_png(mask))
        if index not in self._with_image and not self._video_wanted:
            return
        painted = paint(rgb, mask)
        if index in self._with_image:
            self._write(f"{OVERLAYS}/{self._sequence.name}/{stem}.jpg", jpeg_bytes(painted))
        if self._video_wanted:
            if self._video is None:
                fps = self._sequence.fps or FRAMES_PER_SECOND
                path = self._work / OVERLAYS / f"{self._sequence.name}.mp4"
                self._video = OverlayVideo(path, (rgb.shape[1], rgb.shape[0]), fps)
            self._video.add(painted)

    def _write(self, place: str, data: bytes) -> None:
        """Write a file to the hidden folder; `finish` flushes it to disk."""
        with writing(self._work / place):
            (self._work / place).write_bytes(data)
        self._hashes[place] = [hashlib.sha256(data).hexdigest()]

    def finish(self, entry: dict[str, Any]) -> None:
        """Move all files to the results folder, replacing earlier ones, and record the sequence's entry.

        If the process is killed meanwhile, the next run finds the sequence unfinished and computes it again.
        """
        with writing(self._folder.path):
            manifest = Manifest(self._folder.path, self._sequence.name)
            if self._video is not None:
                self._video.close()
                self._hashes[manifest.video] = [hash_of(self._work / manifest.video)]
            for place in self._hashes:
                synced(self._work / place)
            manifest.check_masks()
            manifest.check_free(self._hashes)
            manifest.expect(self._hashes)
            manifest.remove_files()
            self._folder.record(self._sequence, entry)
            # Masks last: with them the sequence counts as finished.
            for place in sorted(self._hashes, key=lambda place: (not place.startswith(f"{OVERLAYS}/"), place)):
                target = inside(self._folder.path, *place.split("/"))
                target.parent.mkdir(parents=True, exist_ok=True)
                (self._work / place).replace(target)
            for parent in {(self._folder.path / place).parent for place in self._hashes}:
                synced(parent)
            manifest.settle(self._hashes)
        self.discard()

    def discard(self) -> None:
        """Remove unfinished files."""
        if self._video is not None:
            self._video.discard()
        shutil.rmtree(self._work, ignore_errors=True)


class Stopwatch:
    """Seconds by stage; stages of several threads overlap, so that the sum may exceed the wall-clock time."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the duration of the block to a stage."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[stage] += time.perf_counter() - start


def write_masks(
    sequences: list[Sequence],
    features: FrameEncoder,
    protocol: Protocol,
    folder: ResultsFolder,
    say: Callable[[str], None] = say,
    *,
    overlays: bool = True,
    progress: bool = True,
) -> list[str]:
    """Write the masks of every sequence that is not finished in the folder; returns the names of those that were.

    say: prints or collects messages; warnings begin with "warning: ".
    overlays: whether to write overlay images and, if PyAV is installed, videos.

    Raises InputError if a file is damaged or cannot be written; sequences finished before it remain.
    """
    for note in (note for sequence in sequences for note in sequence.notes):
        say(f"warning: {note}")
    waiting = [sequence for sequence in sequences if not folder.finished(sequence, overlays)]
    for sequence in waiting:
        folder.check_free(sequence, overlays)
    if len(waiting) < len(sequences):
        say(f"{len(sequences) - len(waiting)} of {len(sequences)} sequences are finished in {folder.path}; resuming")
    video = importlib.util.find_spec("av") is not None
    if not video and waiting and overlays:
        say("overlay videos are left out: PyAV is not installed (pip install av)")
    frames, first = sum(len(s.frames) for s in waiting), waiting[0].name if waiting else ""
    with Progress(frames, "frame", first, shown=progress) as bar:
        for sequence in waiting:
            bar.describe(sequence.name)
            start = time.perf_counter()
            watch = Stopwatch()
            writer = SequenceWriter(folder, sequence, video and overlays, images=overlays)
            try:
                _write_sequence(sequence, features, protocol, writer, watch, bar, say)
                watch.seconds["total"] = time.perf_counter() - start
                seconds = {stage: round(value, 3) for stage, value in watch.seconds.items()}
                writer.finish({"frames": len(sequence.frames), "seconds": seconds})
            except BaseException:
                writer.discard()
                raise
            say(f"{sequence.name}: {len(sequence.frames)} frames in {seconds['total']:.1f} s")
            say_detail(f"  {', '.join(f'{stage} {value:.1f} s' for stage, value in seconds.items())}")
    return [sequence.name for sequence in sequences if sequence not in waiting]


@torch.inference_mode()
def _write_sequence(
    sequence: Sequence,
    features: FrameEncoder,
    protocol: Protocol,
    writer: SequenceWriter,
    watch: Stopwatch,
    bar: Progress,
    say: Callable[[str], None],
) -> None:
    """Propagate through one sequence; masks are computed and written in a separate thread."""
    annotation = read_mask(sequence.annotations[0], sequence.masks)
    labels_at = labels_of_masks({0: annotation}, protocol)
    written: list[Future[None]] = []

    def write(frame: PropagatedFrame) -> None:
        with watch("write"):
            assert frame.rgb is not None
            writer.add(frame.index, frame.rgb, frame.mask())

    propagated = propagate_frames(sequence.frames, features, protocol, labels_at, timer=watch)
    with ThreadPoolExecutor(1) as pool, closing(propagated):
        for frame in propagated:
            if frame.index == 0:
                _warn_of_dropped(sequence, set(object_ids(annotation)), set(frame.ids), say)
            with watch("propagate"):
                frame = replace(frame, soft=frame.soft.cpu())
            written.append(pool.submit(write, frame))
            if len(written) > WRITE_BEHIND:
                written.pop(0).result()
            bar.update()
        for future in written:
            future.result()


def _warn_of_dropped(sequence: Sequence, annotated: set[int], kept: set[int], say: Callable[[str], None]) -> None:
    """Warn of annotated objects that the protocol drops as too small, and of sequences without objects."""
    for lost in sorted(annotated - kept):
        say(f"warning: {sequence.name}: object {lost} is dropped, too small for the protocol")
    if not kept - {0}:
        say(f"warning: {sequence.name}: {sequence.annotations[0]} holds no object; all its masks are background")
