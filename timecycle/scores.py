"""DAVIS-2017 semi-supervised scores of index masks, of a set of sequences: files in, numbers out. Knows no torch.

What one frame's masks are worth, and what the official evaluation has to do with it, is in timecycle/frame_scores.py.
"""

import argparse
import csv
import io
import json
import math
import multiprocessing
import os
import signal
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from timecycle.data.davis import annotation_files, annotations_folder, of_year, sequence_names
from timecycle.errors import InputError, run_command_line
from timecycle.files import write_bytes
from timecycle.frame_scores import (
    Statistics,
    count_objects,
    frame_boundary_f,
    frame_jaccard,
    mean,
    score_frame,
    statistics,
)
from timecycle.masks import (
    AS_STORED,
    SHOWN,
    MaskReading,
    add_mask_options,
    check_annotation,
    masks_of,
    object_ids,
    read_mask,
)

__all__ = [  # of the frames' measures too
    "Frame", "ObjectScores", "Scores", "SequenceMasks", "Statistics", "count_objects", "evaluate", "frame_boundary_f",
    "frame_jaccard", "score_frame", "score_masks", "score_sequence", "statistics",
]  # fmt: skip

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
# Small enough to keep all workers busy to the end; a sequence this short is scored sooner than a worker has started.
CHUNK_FRAMES = 64


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """One object's J and F, float64 [scored frames] (the sequence's first and last frame left out)."""

    jaccard: np.ndarray
    boundary: np.ndarray
    jaccard_statistics: Statistics
    boundary_statistics: Statistics
    absent: bool = False
    """Whether no annotation and no result has its id, so that it counts for nothing; the official code has all 1."""


@dataclass(frozen=True)
class SequenceMasks:
    """The files of one sequence, in order: one annotation and one result per frame.

    Of the first frame only the annotation is read, of the last frame nothing.
    """

    name: str
    annotations: Sequence[Path]
    results: Sequence[Path]
    masks: MaskReading = AS_STORED
    """How the annotations are read."""
    result_masks: MaskReading = AS_STORED


class Frame(NamedTuple):
    """One object in one frame."""

    sequence: str
    object_id: int
    file: str
    """Name of the annotation's file."""
    jaccard: float
    boundary: float


@dataclass(frozen=True, eq=False, repr=False)
class Scores:
    """The scores of a set: for each sequence its objects, ids 1, 2, ... in order. Prints as its table."""

    sequences: dict[str, tuple[ObjectScores, ...]]
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """The names of each sequence's scored annotations, as the objects' values are in order."""
    notes: tuple[str, ...] = ()
    """What is left out of the means, and what their reader should know, a sentence each."""
    folder: Path | None = None
    """Where the masks are, if they were kept."""

    @property
    def global_(self) -> dict[str, float]:
        """The official columns: means over all objects (not sequences), those with nothing to score left out.

        An id that nobody has is no object here, and one found perfectly in `official`. NaN if nothing is scored.
        """
        found = (scores for _, _, scores in self._objects() if not scores.absent)
        return dict(zip(GLOBAL_COLUMNS, _summary(found), strict=True))

    @property
    def official(self) -> dict[str, float]:
        """The same as the official code counts: an id below the largest that nobody has is a perfect object."""
        return dict(zip(GLOBAL_COLUMNS, _summary(scores for _, _, scores in self._objects()), strict=True))

    @property
    def jf(self) -> float:
        """J&F, the mean over all objects, in [0, 1]; NaN if nothing is scored."""
        return self.global_["J&F-Mean"]

    def worst(self, count: int = 5) -> list[Frame]:
        """The frames with the lowest mean of J and F, of all objects, the lowest first."""
        found = [
            Frame(name, id_, file, float(j), float(f))
            for name, id_, scores in self._objects()
            if not scores.absent
            for file, j, f in zip(self.files.get(name, ()), scores.jaccard, scores.boundary, strict=False)
        ]
        return sorted(found, key=lambda frame: frame.jaccard + frame.boundary)[:count]

    def __repr__(self) -> str:
        return self.table()

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, NaN as None.

        `{"global": {column: value}, "official": the same, "sequences": {name: {id: {"J": [...], "F": [...], "J_mean":
        ..., ...}}}, "files": {name: [...]}, "worst": [frame], "notes": [...]}`. Ids that nobody has are left out of
        "sequences", and of all but "official".
        """
        sequences: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.sequences}
        for name, id_, scores in self._objects():
            if scores.absent:
                continue
            fields = sequences[name][str(id_)] = {"J": _json(scores.jaccard), "F": _json(scores.boundary)}
            for letter, summary in (("J", scores.jaccard_statistics), ("F", scores.boundary_statistics)):
                fields |= {f"{letter}_{key}": _json(value) for key, value in summary._asdict().items()}
        return {
            "global": {column: _json(value) for column, value in self.global_.items()},
            "official": {column: _json(value) for column, value in self.official.items()},
            "sequences": sequences,
            "files": {name: list(files) for name, files in self.files.items()},
            "worst": [frame._asdict() for frame in self.worst()],
            "notes": list(self.notes),
        }

    def table(self) -> str:
        """Lay out a table for the screen: one row per sequence, averaged over its objects, and one over all objects.

        A dash stands where nothing is scored.
        """
        rows = [(name, _summary(o for o in objects if not o.absent)) for name, objects in self.sequences.items()]
        rows.append(("all objects", list(self.global_.values())))
        width = max(len("sequence"), *(len(name) for name, _ in rows))
        headings = ("J mean", "J recall", "J decay", "F mean", "F recall", "F decay", "J&F")
        lines = [f"{'sequence':<{width}}" + "".join(f"{heading:>10}" for heading in headings)]
        lines += [
            f"{name:<{width}}" + "".join(f"{_shown(value):>10}" for value in [*rest, j_f])
            for name, (j_f, *rest) in rows
        ]
        lines.insert(-1, "-" * len(lines[0]))
        return "\n".join(lines)

    def write_csv(self, folder: Path, set_name: str = "val") -> None:
        """Write `global_results-<set>.csv` and `per-sequence_results-<set>.csv` as the official evaluation does.

        Ids that nobody has are left out.
        """
        rows = [
            [f"{name}_{id_}", scores.jaccard_statistics.mean, scores.boundary_statistics.mean]
            for name, id_, scores in self._objects()
            if not scores.absent
        ]
        _write_table(folder / f"global_results-{set_name}.csv", GLOBAL_COLUMNS, [list(self.global_.values())])
        _write_table(folder / f"per-sequence_results-{set_name}.csv", ("Sequence", "J-Mean", "F-Mean"), rows)

    def report(self) -> str:
        """The table, the means on a line, the worst frame, and the notes."""
        lines = [self.table(), "", "  ".join(f"{column} {_shown(value)}" for column, value in self.global_.items())]
        if any(scores.absent for _, _, scores in self._objects()):
            official = "  ".join(f"{column} {_shown(value)}" for column, value in self.official.items())
            lines.append(f"with ids that nobody has, as the official code counts: {official}")
        for frame in self.worst(1):
            lines.append(
                f"worst frame: {frame.sequence}/{frame.file}, object {frame.object_id}: J {frame.jaccard:.3f}, F "
                f"{frame.boundary:.3f}"
            )
        return "\n".join([*lines, *(f"warning: {note}" for note in self.notes)])

    def _objects(self) -> Iterator[tuple[str, int, ObjectScores]]:
        for name, objects in self.sequences.items():
            yield from ((name, id_, scores) for id_, scores in enumerate(objects, start=1))


def score_sequence(annotations: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> tuple[ObjectScores, ...]:
    """Score a sequence in memory: ids, uint8 [H, W], of every frame (or one array [frames, H, W] each).

    Raises InputError if the numbers of frames or the sizes differ or a result holds more objects than annotated.
    """
    if not len(annotations) == len(results) > 0:
        raise InputError(f"{len(results)} results for {len(annotations)} annotations; expected one each, at least one")
    objects = count_objects(annotations[0])
    pairs = list(zip(annotations, results, strict=True))[1:-1]
    there = set(object_ids(annotations[0])).union(*(_ids_in(pair, objects) for pair in pairs))
    return _per_object([score_frame(annotation, result, objects) for annotation, result in pairs], objects, there)


def score_masks(sequences: Sequence[SequenceMasks], workers: int | None = None) -> Scores:
    """Score sequences from their files over worker processes, always anew.

    `workers`: 0 or 1 stays in this process; None takes as many as there are CPU cores, fewer for little work.

    Raises InputError for missing or unreadable files and all that `score_frame` refuses.
    """
    if not sequences:
        raise InputError("no sequences to score; expected at least one")
    if workers is not None and workers < 0:
        raise InputError(f"workers is {workers}; expected 0 or more")
    notes = _short(sequences)
    there = {sequence.name: _check_sequence(sequence, notes) for sequence in sequences}
    objects = {name: max(ids, default=0) for name, ids in there.items()}
    if len(objects) < len(sequences):
        raise InputError("two sequences to score have the same name; expected distinct ones")
    chunks = [chunk for sequence in sequences for chunk in _chunks(sequence)]
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(chunks))
    results = _score_chunks(chunks, [objects[chunk.name] for chunk in chunks], workers)
    frames: dict[str, list[np.ndarray]] = {name: [] for name in objects}
    total = sum(len(chunk.results) for chunk in chunks)
    with tqdm(total=total, desc="scoring", unit="frame", delay=2, disable=None) as progress:
        for chunk, (scores, ids) in zip(chunks, results, strict=True):
            frames[chunk.name] += scores
            there[chunk.name] |= ids
            progress.update(len(scores))
    return Scores(
        {name: _per_object(frames[name], objects[name], there[name]) for name in objects},
        {sequence.name: tuple(path.name for path in sequence.annotations[1:-1]) for sequence in sequences},
        tuple(notes),
    )


def evaluate(
    davis: Path,
    results: Path,
    set_name: str = "val",
    year: str = "2017",
    workers: int | None = None,
    masks: MaskReading = AS_STORED,
) -> Scores:
    """Score the results `<results>/<sequence>/*.png` of a set of a DAVIS folder; `workers` as in `score_masks`.

    masks: how annotations and results are read. year: of 2016, any object is object 1 in both.
    Raises InputError for missing folders, an unknown or empty set, a sequence without annotations; as `score_masks`.
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


def _chunks(sequence: SequenceMasks) -> Iterator[SequenceMasks]:
    """Split a sequence's scored frames evenly, so that long sequences do not keep one worker busy alone."""
    scored = max(len(sequence.annotations) - 2, 0)
    parts = math.ceil(scored / CHUNK_FRAMES)
    for i in range(parts):
        frames = slice(1 + i * scored // parts, 1 + (i + 1) * scored // parts)
        yield replace(sequence, annotations=sequence.annotations[frames], results=sequence.results[frames])


Chunk = tuple[list[np.ndarray], set[int]]
"""Of some frames each object's J and F, as `score_frame` returns them, and the ids that are in one of them."""


def _score_chunk(chunk: SequenceMasks, objects: int) -> Chunk:
    scores, there = [], set[int]()
    for annotation, result in zip(chunk.annotations, chunk.results, strict=True):
        masks = read_mask(annotation, chunk.masks), read_mask(result, chunk.result_masks)
        try:
            scores.append(score_frame(*masks, objects))
        except InputError as error:
            raise InputError(f"{result} does not fit {annotation}: {error}") from None
        there |= _ids_in(masks, objects)
    return scores, there


def _ids_in(masks: Iterable[np.ndarray], objects: int) -> set[int]:
    """The ids up to `objects` that one of some masks, uint8 [H, W], has."""
    return {id_ for mask in masks for id_ in object_ids(mask) if id_ <= objects}


def _score_chunks(chunks: list[SequenceMasks], objects: list[int], workers: int) -> Iterator[Chunk]:
    if workers <= 1:
        yield from map(_score_chunk, chunks, objects)
        return
    # Forking is unsafe once torch or OpenCV have started threads, and the caller may well have done so.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        with _main_module_hidden():
            scores = pool.map(_score_chunk, chunks, objects)
        yield from scores


@contextmanager
def _main_module_hidden() -> Iterator[None]:
    """Keep spawned processes from importing the caller's script, which would cost each the seconds that torch takes."""
    main_module = sys.modules["__main__"]
    sys.modules["__main__"] = ModuleType("__main__")
    try:
        yield
    finally:
        sys.modules["__main__"] = main_module


def _start_worker() -> None:
    # The parent handles Ctrl-C for all; a worker would only add its own traceback.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    cv2.setNumThreads(1)


def _short(sequences: Sequence[SequenceMasks]) -> list[str]:
    """A sentence on the sequences without a frame to score, if there are any."""
    short = [sequence.name for sequence in sequences if len(sequence.annotations) < 3]
    if not short:
        return []
    means = "are left out of the means" if len(short) < len(sequences) else "there are no scores"
    return [
        f"{len(short)} of {len(sequences)} sequences have annotations of one or two frames only and {means}, since the "
        f"first and the last frame are never scored: {', '.join(short[:SHOWN])}{' ...' if len(short) > SHOWN else ''}"
    ]


def _check_sequence(sequence: SequenceMasks, notes: list[str]) -> set[int]:
    """Refuse what can be seen before scoring, note what is to be known, and return the first annotation's ids."""
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
    notes += check_annotation(sequence.annotations[0], sequence.masks)
    ids = set(object_ids(read_mask(sequence.annotations[0], sequence.masks)))
    if scored and not ids:
        notes.append(f"{sequence.name} is not scored: {sequence.annotations[0]} holds no object")
    return ids


def _per_object(frames: list[np.ndarray], objects: int, there: set[int]) -> tuple[ObjectScores, ...]:
    columns = np.array(frames).reshape(len(frames), objects, 2).transpose(1, 2, 0)
    return tuple(
        ObjectScores(j, f, statistics(j), statistics(f), id_ not in there)
        for id_, (j, f) in enumerate(columns, start=1)
    )


def _summary(objects: Iterable[ObjectScores]) -> list[float]:
    """Average over objects; in the order of GLOBAL_COLUMNS."""
    rows = [[*scores.jaccard_statistics, *scores.boundary_statistics] for scores in objects]
    columns = [mean(column) for column in np.array(rows).reshape(-1, 6).T]
    return [(columns[0] + columns[3]) / 2, *columns]


def _json(values: np.ndarray | float) -> list[float | None] | float | None:
    plain = np.asarray(values).astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _shown(value: float) -> str:
    return "-" if math.isnan(value) else f"{value:.3f}"


def _write_table(path: Path, columns: Sequence[str], rows: list[list]) -> None:
    """Write a CSV like pandas' `to_csv(index=False, float_format="%.3f")`, where NaN is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(x if isinstance(x, str) else "" if math.isnan(x) else f"{x:.3f}" for x in row)
    write_bytes(path, text.getvalue().encode())


def main() -> None:
    """Run the command line; see `--help`."""
    parser = argparse.ArgumentParser(prog="python -m timecycle.scores", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS folder (Annotations/480p, ImageSets)")
    parser.add_argument("--results", type=Path, required=True, help="folder of results: <sequence>/<frame>.png")
    parser.add_argument("--set", default="val", help="name of the list in ImageSets (default: %(default)s)")
    parser.add_argument("--year", default="2017", help="folder in ImageSets (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write all scores to this file")
    parser.add_argument("--workers", type=int, help="processes; 0 or 1: only this one (default: one per CPU core)")
    add_mask_options(parser)
    args = parser.parse_args()
    if args.json is not None and args.json.is_dir():
        raise InputError(f"--json {args.json} is a folder; expected the name of a file")
    scores = evaluate(args.davis, args.results, args.set, args.year, args.workers, masks_of(args))
    print(scores.report())
    if args.json is not None:
        try:
            write_bytes(args.json, json.dumps(scores.to_json(), indent=1, allow_nan=False).encode())
        except OSError as error:
            raise InputError(f"--json {args.json} cannot be written ({error}); expected a writable file") from None


if __name__ == "__main__":
    # Under the module's own name, where worker processes look for its functions.
    from timecycle.scores import main

    run_command_line(main)
