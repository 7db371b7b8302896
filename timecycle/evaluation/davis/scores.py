"""DAVIS-2017 semi-supervised scores of index masks, from files of a set of sequences. Needs no torch.

metrics.py scores one frame; tables.py holds the scores of a set; score_command.py is the command.
"""

import math
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from types import ModuleType

import cv2
import numpy as np

from timecycle.data.masks import (
    AS_STORED,
    MaskReading,
    object_ids,
    read_annotation,
    read_mask,
)
from timecycle.data.sequences import Sequence as DavisSequence
from timecycle.data.sequences import annotation_files
from timecycle.errors import InputError, listing
from timecycle.evaluation.davis.layout import annotations_folder, of_year, sequence_names
from timecycle.evaluation.davis.metrics import score_frame, statistics
from timecycle.evaluation.davis.pixels import ObjectPixels, count_pixels
from timecycle.evaluation.davis.tables import ObjectScores, Scores
from timecycle.progress import Progress
from timecycle.workers import begin_worker, pool

# Small enough to balance workers; scoring this many frames takes less time than starting a worker.
CHUNK_FRAMES = 64


@dataclass(frozen=True)
class SequenceMasks:
    """The files of one sequence, one annotation and one result per frame, in order.

    Of the first frame only the annotation is read, of the last frame neither file.
    """

    name: str
    """Of the sequence."""
    annotations: Sequence[Path]
    """A file for each frame."""
    results: Sequence[Path]
    """A file for each frame."""
    masks: MaskReading = AS_STORED
    """How the annotations are read."""
    result_masks: MaskReading = AS_STORED
    """How the results are read."""


def score_sequence(annotations: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> tuple[ObjectScores, ...]:
    """Score a sequence in memory.

    Args:
        annotations: ids, uint8 [H, W], of every frame; or one array [frames, H, W].
        results: the same of the results.

    Returns:
        The scores of objects 1, 2, ... in order.

    Raises InputError if the numbers of frames or the sizes differ or a result holds more objects than annotated.
    """
    if not len(annotations) == len(results) > 0:
        raise InputError(f"{len(results)} results for {len(annotations)} annotations; expected one each, at least one")
    ids = object_ids(annotations[0])
    objects = max(ids, default=0)
    pairs = list(zip(annotations, results, strict=True))[1:-1]
    there = set(ids).union(*(_ids_in(pair, objects) for pair in pairs))
    return _per_object([_measured(*pair, objects) for pair in pairs], annotations[0], objects, there)


def score_masks(sequences: Sequence[SequenceMasks], workers: int | None = None) -> Scores:
    """Score sequences from their files, in worker processes.

    Args:
        sequences: at least one, with different names.
        workers: 0 or 1 uses this process only; None uses one worker per CPU core, at most one for every 64 frames.

    Raises InputError for missing or unreadable files, and as `score_frame`.
    """
    if not sequences:
        raise InputError("no sequences to score; expected at least one")
    if workers is not None and workers < 0:
        raise InputError(f"workers is {workers}; expected 0 or more")
    short = [sequence.name for sequence in sequences if len(sequence.annotations) < 3]
    have = "annotations of one or two frames only, of which the first and the last are never scored,"
    notes = _left_out(short, len(sequences), have)
    first = {sequence.name: _check_sequence(sequence, notes) for sequence in sequences}
    there = {name: set(object_ids(annotation)) for name, annotation in first.items()}
    objects = {name: max(ids, default=0) for name, ids in there.items()}
    if len(objects) < len(sequences):
        raise InputError("two sequences to score have the same name; expected distinct ones")
    chunks = [chunk for sequence in sequences for chunk in _chunks(sequence)]
    total = sum(len(chunk.results) for chunk in chunks)
    if workers is None:
        workers = min(os.cpu_count() or 1, total // CHUNK_FRAMES)
    workers = min(workers, len(chunks))
    results = _score_chunks(chunks, [objects[chunk.name] for chunk in chunks], workers)
    frames: dict[str, list[np.ndarray]] = {name: [] for name in objects}
    with Progress(total, "frame", "scoring", delay=2.0) as progress:
        for chunk, (scores, ids) in zip(chunks, results, strict=True):
            frames[chunk.name] += scores
            there[chunk.name] |= ids
            progress.update(len(scores))
    return Scores(
        {name: _per_object(frames[name], first[name], objects[name], there[name]) for name in objects},
        {sequence.name: tuple(path.name for path in sequence.annotations[1:-1]) for sequence in sequences},
        tuple(notes),
    )


def score_results(
    davis: Path,
    results: Path,
    set_name: str = "val",
    year: str = "2017",
    workers: int | None = None,
    masks: MaskReading = AS_STORED,
) -> Scores:
    """Score a folder of masks against the annotations of a set of DAVIS, as the official evaluation does.

    Args:
        davis: folder in DAVIS layout, see `read_davis`.
        results: folder of the masks, `<results>/<sequence>/*.png`, named like the annotations.
        set_name: list in ImageSets/<year>.
        year: with 2016, every object is read as object 1 in annotations and results.
        workers: as in `score_masks`.
        masks: how annotations and results are read.

    Raises InputError for missing folders, an unknown or empty set or a sequence without annotations, and as
    `score_masks`.
    """
    if not results.is_dir():
        raise InputError(f"{results} is not a folder; expected one of results, <sequence>/<frame>.png")
    sequences, masks = [], of_year(masks, year)
    for name in sequence_names(davis, set_name, year):
        annotations = annotation_files(annotations_folder(davis, name))
        own = masks.of_sequence(annotations[0])
        paths = [results / name / path.name for path in annotations]
        sequences.append(SequenceMasks(name, annotations, paths, own, own))
    return score_masks(sequences, workers)


def score_written(sequences: Sequence[DavisSequence], folder: Path, workers: int | None = None) -> Scores | None:
    """Score `<folder>/<sequence>/*.png` of the sequences annotated in every frame; None if there are none.

    Raises as `score_masks`.
    """
    masks = [
        SequenceMasks(s.name, s.annotations, [folder / s.name / f"{a.stem}.png" for a in s.annotations], s.masks)
        for s in sequences
        if s.scored
    ]
    return score_masks(masks, workers) if masks else None


def left_out(sequences: Sequence[DavisSequence]) -> list[str]:
    """A note on the sequences that cannot be scored, if there are any."""
    names = [sequence.name for sequence in sequences if not sequence.scored]
    return _left_out(names, len(sequences), "an annotation of the first frame only")


def _chunks(sequence: SequenceMasks) -> Iterator[SequenceMasks]:
    """Split a sequence's scored frames evenly, to balance long sequences over workers."""
    scored = max(len(sequence.annotations) - 2, 0)
    parts = math.ceil(scored / CHUNK_FRAMES)
    for i in range(parts):
        frames = slice(1 + i * scored // parts, 1 + (i + 1) * scored // parts)
        yield replace(sequence, annotations=sequence.annotations[frames], results=sequence.results[frames])


def _score_chunk(chunk: SequenceMasks, objects: int) -> tuple[list[np.ndarray], set[int]]:
    """What `_measured` returns for each frame, and all ids in the masks."""
    scores, there = [], set[int]()
    for annotation, result in zip(chunk.annotations, chunk.results, strict=True):
        masks = read_mask(annotation, chunk.masks), read_mask(result, chunk.result_masks)
        try:
            scores.append(_measured(*masks, objects))
        except InputError as error:
            raise InputError(f"{result} does not fit {annotation}: {error}") from None
        there |= _ids_in(masks, objects)
    return scores, there


def _measured(annotation: np.ndarray, result: np.ndarray, objects: int) -> np.ndarray:
    """J, F and pixels of every object in one frame, float64 [objects, 9]: `score_frame`, then `count_pixels`."""
    return np.hstack([score_frame(annotation, result, objects), count_pixels(annotation, result, objects)])


def _ids_in(masks: Iterable[np.ndarray], objects: int) -> set[int]:
    """The ids up to `objects` in any of the masks, uint8 [H, W]."""
    return {id_ for mask in masks for id_ in object_ids(mask) if id_ <= objects}


def _score_chunks(
    chunks: list[SequenceMasks], objects: list[int], workers: int
) -> Iterator[tuple[list[np.ndarray], set[int]]]:
    if workers <= 1:
        yield from map(_score_chunk, chunks, objects)
        return
    try:
        with pool(workers, _start_worker) as processes:
            with _main_module_hidden():
                scores = processes.map(_score_chunk, chunks, objects)
            yield from scores
    except BrokenProcessPool:
        raise InputError(
            f"a scoring process was killed, possibly out of memory; expected enough memory for {workers} workers, "
            "or fewer workers"
        ) from None


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep spawned processes from importing the caller's script, and with it torch, which takes seconds."""
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module


def _start_worker() -> None:
    begin_worker()
    cv2.setNumThreads(1)


def _left_out(names: Sequence[str], total: int, have: str) -> list[str]:
    """A note on the sequences, of `total`, that are not scored because they `have` something, if there are any."""
    if not names:
        return []
    means = "are left out of the means" if len(names) < total else "there are no scores"
    return [f"{len(names)} of {total} sequences have {have} and {means}: {listing(names)}"]


def _check_sequence(sequence: SequenceMasks, notes: list[str]) -> np.ndarray:
    """Check a sequence before scoring, append to `notes`, and return the first annotation."""
    if not len(sequence.annotations) == len(sequence.results) > 0:
        raise InputError(
            f"sequence {sequence.name} has {len(sequence.results)} results for {len(sequence.annotations)} "
            "annotations; expected one each, at least one"
        )
    scored = sequence.results[1:-1]
    missing = [path for path in scored if not path.is_file()]
    if missing:
        raise InputError(
            f"{missing[0]} does not exist; expected a result for each scored frame of sequence {sequence.name}, but "
            f"{len(missing)} of {len(scored)} are missing"
        )
    annotation, found = read_annotation(sequence.annotations[0], sequence.masks)
    notes += found
    if scored and not object_ids(annotation):
        notes.append(f"{sequence.name} is not scored: {sequence.annotations[0]} holds no object")
    return annotation


def _per_object(frames: list[np.ndarray], first: np.ndarray, objects: int, there: set[int]) -> tuple[ObjectScores, ...]:
    found = []
    for id_, own in enumerate(np.array(frames).reshape(len(frames), objects, 9).transpose(1, 0, 2), start=1):
        j, f = own[:, :2].T.copy()
        pixels = ObjectPixels.of_counts(first, id_, own[:, 2:])
        found.append(ObjectScores(j, f, statistics(j), statistics(f), id_ not in there, pixels))
    return tuple(found)
