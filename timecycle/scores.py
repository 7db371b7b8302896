"""DAVIS-2017 semi-supervised scores (J, F; mean, recall, decay) of index masks: arrays in, numbers out. Knows no torch.

They equal those of the official davis2017-evaluation, except that decay stays right beyond 255 scored frames.
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
from dataclasses import dataclass
from functools import lru_cache
from itertools import repeat
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import cv2
import numpy as np
from tqdm import tqdm

from timecycle.data.davis import annotation_files, annotations_folder, sequence_names
from timecycle.errors import InputError, run_command_line
from timecycle.files import write_bytes
from timecycle.masks import VOID, check_not_black_and_white, read_mask

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
# Small enough to keep all workers busy to the end; a sequence this short is scored sooner than a worker has started.
CHUNK_FRAMES = 64


class Statistics(NamedTuple):
    """What DAVIS reports of one object's values over the frames. NaN where there was nothing to score."""

    mean: float
    recall: float
    decay: float


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """One object's J and F, float64 [scored frames] (the sequence's first and last frame left out)."""

    jaccard: np.ndarray
    boundary: np.ndarray
    jaccard_statistics: Statistics
    boundary_statistics: Statistics


@dataclass(frozen=True)
class SequenceMasks:
    """The files of one sequence, in order: one annotation and one result per frame.

    Of the first frame only the annotation is read, of the last frame nothing.
    """

    name: str
    annotations: Sequence[Path]
    results: Sequence[Path]


@dataclass(frozen=True, eq=False)
class Scores:
    """The scores of a set: for each sequence its objects, ids 1, 2, ... in order."""

    sequences: dict[str, tuple[ObjectScores, ...]]

    @property
    def global_(self) -> dict[str, float]:
        """The official columns: means over all objects (not sequences), those with nothing to score left out."""
        return dict(zip(GLOBAL_COLUMNS, _summary(scores for _, _, scores in self._objects()), strict=True))

    def to_json(self) -> dict[str, Any]:
        """Return everything as JSON values, NaN as None.

        `{"global": {column: value}, "sequences": {name: {id: {"J": [...], "F": [...], "J_mean": ..., ...}}}}`.
        """
        sequences: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.sequences}
        for name, id_, scores in self._objects():
            fields = sequences[name][str(id_)] = {"J": _json(scores.jaccard), "F": _json(scores.boundary)}
            for letter, summary in (("J", scores.jaccard_statistics), ("F", scores.boundary_statistics)):
                fields |= {f"{letter}_{key}": _json(value) for key, value in summary._asdict().items()}
        return {"global": {column: _json(value) for column, value in self.global_.items()}, "sequences": sequences}

    def table(self) -> str:
        """Lay out a table for the screen: one row per sequence, averaged over its objects, and one over all objects."""
        rows = [(name, _summary(objects)) for name, objects in self.sequences.items()]
        rows.append(("all objects", list(self.global_.values())))
        width = max(len("sequence"), *(len(name) for name, _ in rows))
        headings = ("J mean", "J recall", "J decay", "F mean", "F recall", "F decay", "J&F")
        lines = [f"{'sequence':<{width}}" + "".join(f"{heading:>10}" for heading in headings)]
        lines += [
            f"{name:<{width}}" + "".join(f"{value:>10.3f}" for value in [*rest, j_f]) for name, (j_f, *rest) in rows
        ]
        lines.insert(-1, "-" * len(lines[0]))
        return "\n".join(lines)

    def write_csv(self, folder: Path, set_name: str = "val") -> None:
        """Write `global_results-<set>.csv` and `per-sequence_results-<set>.csv` as the official evaluation does."""
        rows = [
            [f"{name}_{id_}", scores.jaccard_statistics.mean, scores.boundary_statistics.mean]
            for name, id_, scores in self._objects()
        ]
        _write_table(folder / f"global_results-{set_name}.csv", GLOBAL_COLUMNS, [list(self.global_.values())])
        _write_table(folder / f"per-sequence_results-{set_name}.csv", ("Sequence", "J-Mean", "F-Mean"), rows)

    def _objects(self) -> Iterator[tuple[str, int, ObjectScores]]:
        for name, objects in self.sequences.items():
            yield from ((name, id_, scores) for id_, scores in enumerate(objects, start=1))


def frame_jaccard(annotation: np.ndarray, prediction: np.ndarray) -> float:
    """Intersection over union of two masks of one object, 1 if both are empty.

    Both are bool or uint8 [H, W], nonzero inside. Raises InputError if their sizes differ.
    """
    return _jaccard(*_crop_to_object(annotation != 0, prediction != 0))


def frame_boundary_f(annotation: np.ndarray, prediction: np.ndarray, tolerance: int | None = None) -> float:
    """Boundary F measure of two masks of one object (Perazzi et al., CVPR 2016, as the official evaluation has it).

    Both are bool or uint8 [H, W], nonzero inside. A boundary pixel is matched if the other boundary has one within
    `tolerance` pixels, by default `ceil(0.008 * image diagonal)`. Raises InputError if their sizes differ.
    """
    if tolerance is None:
        tolerance = _tolerance(*annotation.shape)
    return _boundary_f(*_crop_to_object(annotation != 0, prediction != 0), tolerance)


def statistics(values: np.ndarray) -> Statistics:
    """Mean, recall and decay of one object's values over the frames, [N] with NaN allowed; all NaN if N is 0.

    Mean and decay leave NaN out; recall is the share strictly above 0.5, where NaN counts as a failure. Decay is the
    mean of the first quarter minus that of the last; neighbouring quarters share a frame.
    """
    values = np.asarray(values, np.float64)
    if not values.size:
        return Statistics(math.nan, math.nan, math.nan)
    # The official code casts these indices to uint8, which spoils its decay from 256 values on.
    edges = np.round(np.linspace(1, len(values), 5) + 1e-10).astype(np.int64) - 1
    first, last = values[edges[0] : edges[1] + 1], values[edges[3] : edges[4] + 1]
    return Statistics(_mean(values), float(np.mean(values > 0.5)), _mean(first) - _mean(last))


def count_objects(annotation: np.ndarray) -> int:
    """Count a sequence's objects: the largest id, void apart, in its first annotation, uint8 [H, W]."""
    return int(np.where(annotation == VOID, 0, annotation).max())


def score_frame(annotation: np.ndarray, result: np.ndarray, objects: int) -> np.ndarray:
    """J and F of objects 1 .. `objects` in one frame, float64 [objects, 2], from ids, uint8 [H, W].

    Void (255) in the annotation is background, as in the official semi-supervised task: predictions on it are errors.
    Raises InputError if the sizes differ or the result holds a larger id.
    """
    if annotation.shape != result.shape:
        raise InputError(f"the result is {_size(result)}; expected {_size(annotation)}, the size of its annotation")
    largest = int(result.max())
    if largest > objects:
        hint = " (--remap-255 reads 255 as object 1)" if largest == VOID else ""
        raise InputError(
            f"the result holds id {largest}; expected none above {objects}, the number of objects annotated in the "
            f"sequence's first frame{hint}"
        )
    tolerance = _tolerance(*annotation.shape)
    scores = np.empty((objects, 2))
    for i in range(objects):
        pair = _crop_to_object(annotation == i + 1, result == i + 1)
        scores[i] = _jaccard(*pair), _boundary_f(*pair, tolerance)
    return scores


def score_sequence(annotations: Sequence[np.ndarray], results: Sequence[np.ndarray]) -> tuple[ObjectScores, ...]:
    """Score a sequence in memory: ids, uint8 [H, W], of every frame (or one array [frames, H, W] each).

    Raises InputError if the numbers of frames or the sizes differ or a result holds more objects than annotated.
    """
    if not len(annotations) == len(results) > 0:
        raise InputError(f"{len(results)} results for {len(annotations)} annotations; expected one each, at least one")
    objects = count_objects(annotations[0])
    pairs = list(zip(annotations, results, strict=True))[1:-1]
    return _per_object([score_frame(annotation, result, objects) for annotation, result in pairs], objects)


def score_masks(sequences: Sequence[SequenceMasks], workers: int | None = None, remap_255: bool = False) -> Scores:
    """Score sequences from their files over worker processes, always anew.

    `workers`: 0 or 1 stays in this process; None takes as many as there are CPU cores, fewer for little work.
    `remap_255` reads 255 as object 1, in annotations and results.

    Raises InputError for missing or unreadable files and all that `score_frame` refuses.
    """
    if not sequences:
        raise InputError("no sequences to score; expected at least one")
    if workers is not None and workers < 0:
        raise InputError(f"workers is {workers}; expected 0 or more")
    objects = {sequence.name: _check_sequence(sequence, remap_255) for sequence in sequences}
    if len(objects) < len(sequences):
        raise InputError("two sequences to score have the same name; expected distinct ones")
    chunks = [chunk for sequence in sequences for chunk in _chunks(sequence)]
    workers = min(os.cpu_count() or 1 if workers is None else workers, len(chunks))
    results = _score_chunks(chunks, [objects[chunk.name] for chunk in chunks], remap_255, workers)
    frames: dict[str, list[np.ndarray]] = {name: [] for name in objects}
    total = sum(len(chunk.results) for chunk in chunks)
    with tqdm(total=total, desc="scoring", unit="frame", delay=2, disable=None) as progress:
        for chunk, scores in zip(chunks, results, strict=True):
            frames[chunk.name] += scores
            progress.update(len(scores))
    return Scores({name: _per_object(frames[name], objects[name]) for name in objects})


def evaluate(
    davis: Path,
    results: Path,
    set_name: str = "val",
    year: str = "2017",
    workers: int | None = None,
    remap_255: bool = False,
) -> Scores:
    """Score the results `<results>/<sequence>/*.png` of a set of a DAVIS folder; options as in `score_masks`.

    Raises InputError for missing folders, an unknown or empty set, a sequence without annotations; as `score_masks`.
    """
    if not results.is_dir():
        raise InputError(f"{results} is not a folder; expected one of results, <sequence>/<frame>.png")
    sequences = []
    for name in sequence_names(davis, set_name, year):
        annotations = annotation_files(annotations_folder(davis, name))
        sequences.append(SequenceMasks(name, annotations, [results / name / path.name for path in annotations]))
    return score_masks(sequences, workers, remap_255)


def _chunks(sequence: SequenceMasks) -> Iterator[SequenceMasks]:
    """Split a sequence's scored frames evenly, so that long sequences do not keep one worker busy alone."""
    scored = max(len(sequence.annotations) - 2, 0)
    parts = math.ceil(scored / CHUNK_FRAMES)
    for i in range(parts):
        frames = slice(1 + i * scored // parts, 1 + (i + 1) * scored // parts)
        yield SequenceMasks(sequence.name, sequence.annotations[frames], sequence.results[frames])


def _score_chunk(chunk: SequenceMasks, objects: int, remap_255: bool) -> list[np.ndarray]:
    scores = []
    for annotation, result in zip(chunk.annotations, chunk.results, strict=True):
        masks = read_mask(annotation, remap_255), read_mask(result, remap_255)
        try:
            scores.append(score_frame(*masks, objects))
        except InputError as error:
            raise InputError(f"{result} does not fit {annotation}: {error}") from None
    return scores


def _score_chunks(
    chunks: list[SequenceMasks], objects: list[int], remap_255: bool, workers: int
) -> Iterator[list[np.ndarray]]:
    if workers <= 1:
        yield from map(_score_chunk, chunks, objects, repeat(remap_255))
        return
    # Forking is unsafe once torch or OpenCV have started threads, and the caller may well have done so.
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _start_worker) as pool:
        with _main_module_hidden():
            scores = pool.map(_score_chunk, chunks, objects, repeat(remap_255))
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


def _check_sequence(sequence: SequenceMasks, remap_255: bool) -> int:
    """Refuse what can be seen before scoring; return the number of objects."""
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
    annotation = read_mask(sequence.annotations[0], remap_255)
    check_not_black_and_white(sequence.annotations[0], annotation)
    return count_objects(annotation)


def _crop_to_object(annotation: np.ndarray, prediction: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Crop two masks, bool [H, W], to their joint box and one pixel more: uint8 of 0 and 1, 0 rows if both are empty.

    One pixel is enough: boundary pixels lie at most one outside the mask, dilation only matters where the other
    boundary is, and a last row or column is either the image's own or background, on which all rules agree.
    """
    if annotation.shape != prediction.shape:
        raise InputError(f"the prediction is {_size(prediction)}; expected {_size(annotation)} like the annotation")
    masks = annotation.view(np.uint8), prediction.view(np.uint8)
    boxes = [(x, y, x + w, y + h) for x, y, w, h in map(cv2.boundingRect, masks) if w]
    if not boxes:
        return masks[0][:0], masks[1][:0]
    x0, y0 = (max(min(box[i] for box in boxes) - 1, 0) for i in (0, 1))
    x1, y1 = (max(box[i] for box in boxes) + 1 for i in (2, 3))
    return masks[0][y0:y1, x0:x1], masks[1][y0:y1, x0:x1]


def _jaccard(annotation: np.ndarray, prediction: np.ndarray) -> float:
    union = np.count_nonzero(annotation | prediction)
    return np.count_nonzero(annotation & prediction) / union if union else 1.0


def _boundary_f(annotation: np.ndarray, prediction: np.ndarray, tolerance: int) -> float:
    if not annotation.size:
        return 1.0
    wanted, found = _boundary(annotation), _boundary(prediction)
    n_wanted, n_found = np.count_nonzero(wanted), np.count_nonzero(found)
    if not n_wanted or not n_found:
        return float(n_wanted == n_found)
    disk = _disk(tolerance)
    precision = np.count_nonzero(found & cv2.dilate(wanted, disk)) / n_found
    recall = np.count_nonzero(wanted & cv2.dilate(found, disk)) / n_wanted
    return 2 * precision * recall / (precision + recall) if precision + recall else 0.0


def _boundary(mask: np.ndarray) -> np.ndarray:
    """Pixels that differ from their east, south or south-east neighbour, as far as there are such neighbours.

    The last row only looks east and the last column only south, so the corner never belongs to it.
    """
    boundary = np.zeros_like(mask)
    inner = mask[:-1, :-1]
    boundary[:-1, :-1] = (inner ^ mask[:-1, 1:]) | (inner ^ mask[1:, :-1]) | (inner ^ mask[1:, 1:])
    boundary[-1, :-1] = mask[-1, :-1] ^ mask[-1, 1:]
    boundary[:-1, -1] = mask[:-1, -1] ^ mask[1:, -1]
    return boundary


def _tolerance(height: int, width: int) -> int:
    return math.ceil(0.008 * math.hypot(height, width))


@lru_cache
def _disk(radius: int) -> np.ndarray:
    # OpenCV's own ellipses are not this disk.
    square = np.arange(-radius, radius + 1) ** 2
    return (square[:, None] + square <= radius**2).astype(np.uint8)


def _per_object(frames: list[np.ndarray], objects: int) -> tuple[ObjectScores, ...]:
    columns = np.array(frames).reshape(len(frames), objects, 2).transpose(1, 2, 0)
    return tuple(ObjectScores(j, f, statistics(j), statistics(f)) for j, f in columns)


def _summary(objects: Iterable[ObjectScores]) -> list[float]:
    """Average over objects; in the order of GLOBAL_COLUMNS."""
    rows = [[*scores.jaccard_statistics, *scores.boundary_statistics] for scores in objects]
    columns = [_mean(column) for column in np.array(rows).reshape(-1, 6).T]
    return [(columns[0] + columns[3]) / 2, *columns]


def _mean(values: np.ndarray) -> float:
    # np.nanmean warns when nothing is left.
    values = values[~np.isnan(values)]
    return float(values.mean()) if values.size else math.nan


def _json(values: np.ndarray | float) -> list[float | None] | float | None:
    plain = np.asarray(values).astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def _size(mask: np.ndarray) -> str:
    return f"{mask.shape[1]}x{mask.shape[0]}"


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
    parser.add_argument("--remap-255", action="store_true", help="read 255 as object 1")
    args = parser.parse_args()
    if args.json is not None and args.json.is_dir():
        raise InputError(f"--json {args.json} is a folder; expected the name of a file")
    scores = evaluate(args.davis, args.results, args.set, args.year, args.workers, args.remap_255)
    print(scores.table())
    print("\n" + "  ".join(f"{column} {value:.3f}" for column, value in scores.global_.items()))
    if args.json is not None:
        try:
            write_bytes(args.json, json.dumps(scores.to_json(), indent=1, allow_nan=False).encode())
        except OSError as error:
            raise InputError(f"--json {args.json} cannot be written ({error}); expected a writable file") from None


if __name__ == "__main__":
    # Under the module's own name, where worker processes look for its functions.
    from timecycle.scores import main

    run_command_line(main)
