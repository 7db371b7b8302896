"""The masks of DAVIS sequences: frames through the propagation driver into a results folder."""

import importlib.util
import time
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import replace
from typing import Any

import torch
from tqdm import tqdm

from timecycle.data.davis import Sequence
from timecycle.data.masks import object_ids, read_mask
from timecycle.evaluation.davis.results import ResultsFolder, SequenceWriter
from timecycle.propagation.protocols import Protocol
from timecycle.propagation.protocols import protocol as as_protocol
from timecycle.propagation.video import FrameEncoder, PropagatedFrame, labels_of_masks, propagate_frames

WRITE_BEHIND = 4
"""Frames whose masks may wait to be written."""


def davis_protocol(name: str | Protocol, **overrides: Any) -> Protocol:
    """A preset, or a protocol, as DAVIS wants it: the first mask of a submission is the annotation itself."""
    return as_protocol(name, **{"first_mask": "given", **overrides})


class Stopwatch:
    """Seconds by stage. Stages run in several threads, so they may sum to more than the wall clock."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)

    @contextmanager
    def __call__(self, stage: str) -> Iterator[None]:
        """Add the time of the block to a stage."""
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
    say: Callable[[str], None] = tqdm.write,
    *,
    overlays: bool = True,
    progress: bool = True,
) -> None:
    """Make the masks of every sequence that is not finished in the folder, with a progress bar.

    Raises InputError for a file that turns out to be damaged; sequences finished before it stay.
    """
    for note in (note for sequence in sequences for note in sequence.notes):
        say(f"warning: {note}")
    waiting = [sequence for sequence in sequences if not folder.finished(sequence)]
    for sequence in waiting:
        folder.check_free(sequence, overlays)
    if len(waiting) < len(sequences):
        say(f"{len(sequences) - len(waiting)} of {len(sequences)} sequences are finished in {folder.path}; going on")
    video = importlib.util.find_spec("av") is not None
    if not video and waiting and overlays:
        say("overlay videos are left out: PyAV is not installed (pip install av)")
    with tqdm(total=sum(len(s.frames) for s in waiting), unit="frame", disable=None if progress else True) as bar:
        for sequence in waiting:
            bar.set_description(sequence.name)
            start = time.perf_counter()
            watch = Stopwatch()
            writer = SequenceWriter(folder, sequence, video and overlays, pictures=overlays)
            try:
                _write_sequence(sequence, features, protocol, writer, watch, bar, say)
                watch.seconds["total"] = time.perf_counter() - start
                seconds = {stage: round(value, 3) for stage, value in watch.seconds.items()}
                writer.finish({"frames": len(sequence.frames), "seconds": seconds})
            except BaseException:
                writer.discard()
                raise
            say(f"{sequence.name}: {len(sequence.frames)} frames in {seconds['total']:.1f} s")


@torch.inference_mode()
def _write_sequence(
    sequence: Sequence,
    features: FrameEncoder,
    protocol: Protocol,
    writer: SequenceWriter,
    watch: Stopwatch,
    bar: tqdm,
    say: Callable[[str], None],
) -> None:
    """One sequence, a frame at a time; the driver reads ahead, and masks are made and written in a thread."""
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
    """Say which annotated objects are too small to be propagated, and when none is left."""
    for lost in sorted(annotated - kept):
        say(f"warning: {sequence.name}: object {lost} is dropped, being too small for the protocol")
    if not kept - {0}:
        say(f"warning: {sequence.name}: {sequence.annotations[0]} holds no object; all its masks are background")
