"""The scores of a set of sequences: means, tables, JSON and the official CSV files. Needs no torch."""

import csv
import io
import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from timecycle.data.masks import LARGEST_ID
from timecycle.errors import InputError, said
from timecycle.evaluation.davis.metrics import Statistics, statistics
from timecycle.evaluation.davis.pixels import ObjectPixels
from timecycle.evaluation.metrics import mean
from timecycle.evaluation.printed import Cell, Printed, Table, shown
from timecycle.manifest import Tables

if TYPE_CHECKING:
    import pandas

GLOBAL_COLUMNS = ("J&F-Mean", "J-Mean", "J-Recall", "J-Decay", "F-Mean", "F-Recall", "F-Decay")
FRAME_COLUMNS = ("sequence", "object", "frame", "J&F", "J", "F")

CSV_NAMES = r"(global|per-sequence)_results-[^/]+\.csv"
"""Pattern for the file names of the official tables."""


@dataclass(frozen=True, eq=False)
class ObjectScores:
    """One object's J and F over the scored frames, which are all but the sequence's first and last frame."""

    jaccard: np.ndarray
    """J, float64 [scored frames]."""
    boundary: np.ndarray
    """F, float64 [scored frames]."""
    jaccard_statistics: Statistics
    """Mean, recall and decay of J."""
    boundary_statistics: Statistics
    """Mean, recall and decay of F."""
    absent: bool = False
    """Whether no annotation and no result has the id, so that it is ignored; the official code scores it 1."""
    pixels: ObjectPixels | None = None
    """Where it is in annotations and results; None if the scores are of a version before 0.2."""


class Frame(NamedTuple):
    """The scores of one object in one frame."""

    sequence: str
    """Name of the sequence."""
    object_id: int
    """Id of the object, from 1."""
    file: str
    """Name of the annotation's file."""
    jaccard: float
    """J, from 0 to 1."""
    boundary: float
    """F, from 0 to 1."""

    @property
    def jf(self) -> float:
        """J&F, the mean of both."""
        return (self.jaccard + self.boundary) / 2


class Frames(Printed, list[Frame]):
    """A list of `Frame`. Printed, it is a table."""

    def _table(self) -> Table:
        return Table(FRAME_COLUMNS, [_row(frame) for frame in self], bold=3, empty="no frames")


@dataclass(frozen=True, eq=False, repr=False)
class Scores(Printed):
    """The scores of a set of sequences. Printed, or as the value of a notebook's cell, it is a table."""

    sequences: dict[str, tuple[ObjectScores, ...]]
    """By sequence, the scores of objects 1, 2, ... in order."""
    files: dict[str, tuple[str, ...]] = field(default_factory=dict)
    """File names of each sequence's scored annotations, in the order of the objects' values."""
    notes: tuple[str, ...] = ()
    """Notes on data problems and on what is excluded from the means, one sentence each."""
    folder: Path | None = None
    """Folder of the masks, if they were kept."""
    page: Path | None = None
    """The page to look at, report.html, if it was written."""

    @property
    def global_(self) -> dict[str, float]:
        """The official columns: means over all objects (not sequences) with something to score; NaN if there are none.

        Ids that no mask has are ignored here, unlike in `official`.
        """
        found = (scores for _, _, scores in self._objects() if not scores.absent)
        return dict(zip(GLOBAL_COLUMNS, _summary(found), strict=True))

    @property
    def official(self) -> dict[str, float]:
        """The same as the official code computes it: an id below the largest one that no mask has counts as perfect."""
        return dict(zip(GLOBAL_COLUMNS, _summary(scores for _, _, scores in self._objects()), strict=True))

    @property
    def jf(self) -> float:
        """J&F, the mean over all objects, in [0, 1]; NaN if nothing is scored."""
        return self.global_["J&F-Mean"]

    @property
    def J(self) -> float:
        """Region similarity J, the mean over all objects, in [0, 1]; NaN if nothing is scored."""
        return self.global_["J-Mean"]

    @property
    def F(self) -> float:
        """Contour accuracy F, the mean over all objects, in [0, 1]; NaN if nothing is scored."""
        return self.global_["F-Mean"]

    @property
    def by_sequence(self) -> dict[str, dict[str, float]]:
        """The same columns as `global_` for each sequence: means over its objects."""
        return {
            name: dict(zip(GLOBAL_COLUMNS, _summary(scores for scores in objects if not scores.absent), strict=True))
            for name, objects in self.sequences.items()
        }

    def worst(self, count: int | None = 5) -> Frames:
        """The frames and objects with the lowest mean of J and F, lowest first: `count` of them, or all with None.

        Printed, they are a table.
        """
        return Frames(sorted(self._frames(), key=lambda frame: frame.jf)[:count])

    def scalars(self, prefix: str = "davis") -> dict[str, float]:
        """The scores as numbers with flat names, for a log of training; what is not scored is left out.

            davis/J&F-Mean, davis/J-Mean, ...    the official columns, see `global_`
            davis_sequences/bear, ...            J&F of each sequence

        With Weights & Biases: `wandb.log(scores.scalars(), step=step)`. With TensorBoard: `log`.

        Args:
            prefix: what the names begin with, to tell several sets or protocols apart.
        """
        found = {f"{prefix}/{column}": value for column, value in self.global_.items()}
        found |= {f"{prefix}_sequences/{name}": means["J&F-Mean"] for name, means in self.by_sequence.items()}
        return {name: value for name, value in found.items() if not math.isnan(value)}

    def log(self, writer: Any, step: int, prefix: str = "davis") -> None:
        """Log `scalars` to TensorBoard.

        Args:
            writer: a SummaryWriter, or anything else with a method `add_scalar(name, value, step)`.
            step: of training.
            prefix: as in `scalars`.

        Raises InputError if the writer has no such method.
        """
        if not hasattr(writer, "add_scalar"):
            raise InputError(
                f"writer is a {type(writer).__name__}, without add_scalar; expected a SummaryWriter, or the use of "
                "scores.scalars()"
            )
        for name, value in self.scalars(prefix).items():
            writer.add_scalar(name, value, step)

    def to_frame(self, per_frame: bool = False) -> "pandas.DataFrame":
        """The scores as a pandas DataFrame with a row for each sequence and object; ids that no mask has are left out.

        Its columns are "sequence", "object" and the official ones, "J&F-Mean", "J-Mean" and so on.

        Args:
            per_frame: make a row for each sequence, object and scored frame instead, with columns "sequence",
                "object", "frame" (name of the annotation's file), "J&F", "J" and "F".

        Raises InputError if pandas is not installed.
        """
        try:
            import pandas
        except ImportError:
            raise InputError(
                "to_frame makes a pandas DataFrame, but pandas is not installed; expected it (pip install pandas), or "
                "the use of to_json"
            ) from None
        if per_frame:
            return pandas.DataFrame(map(_row, self._frames()), columns=FRAME_COLUMNS)
        rows = [(name, id_, *_summary([one])) for name, id_, one in self._objects() if not one.absent]
        return pandas.DataFrame(rows, columns=("sequence", "object", *GLOBAL_COLUMNS))

    def to_json(self) -> dict[str, Any]:
        """All scores as JSON values, NaN as None.

            global       by official column, see `global_`
            official     the same of `official`
            sequences    by name, then by object id: "frames", file names of the scored annotations, and "J" and "F"
                         of each of them; "J_mean", "J_recall", "J_decay", "F_mean", "F_recall", "F_decay"; "pixels",
                         see `ObjectPixels`
            files        by sequence: file names of the scored annotations
            worst        a list of frames, see `worst`
            notes        a list of sentences

        Ids that no mask has count only in "official".
        """
        sequences: dict[str, dict[str, dict[str, Any]]] = {name: {} for name in self.sequences}
        for name, id_, scores in self._objects():
            if scores.absent:
                continue
            fields: dict[str, Any] = {"frames": list(self.files.get(name, ()))}
            fields |= {"J": _json(scores.jaccard), "F": _json(scores.boundary)}
            for letter, summary in (("J", scores.jaccard_statistics), ("F", scores.boundary_statistics)):
                fields |= {f"{letter}_{key}": _json(value) for key, value in summary._asdict().items()}
            if scores.pixels:
                fields["pixels"] = scores.pixels.to_json()
            sequences[name][str(id_)] = fields
        return {
            "global": {column: _json(value) for column, value in self.global_.items()},
            "official": {column: _json(value) for column, value in self.official.items()},
            "sequences": sequences,
            "files": {name: list(files) for name, files in self.files.items()},
            "worst": [frame._asdict() for frame in self.worst()],
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, content: dict[str, Any], folder: Path | None = None) -> "Scores":
        """The inverse of `to_json`. Raises InputError for anything else."""
        try:
            files = {name: tuple(names) for name, names in content["files"].items()}
            sequences = {name: _objects_from(found, len(files[name])) for name, found in content["sequences"].items()}
            notes = tuple(content["notes"])
            if not all(isinstance(text, str) for texts in (*files.values(), notes) for text in texts):
                raise ValueError("names of frames and notes are not all texts")
            return cls(sequences, files, notes, folder)
        except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
            raise InputError(
                f"these are no scores ({type(error).__name__}: {error}); expected those of results.json"
            ) from None

    def table(self) -> str:
        """Format a table with a row per sequence, averaged over its objects, and a row over all objects.

        Its columns are the official ones in their order: J&F, then mean, recall and decay of J, then those of F. A dash
        means that nothing is scored.
        """
        return self._table().text()

    def _table(self) -> Table:
        if not self.sequences:
            return Table((), (), empty=f"no scores{f'; masks: {self.folder}/<sequence>' if self.folder else ''}")
        rows: list[list[Cell]] = [[name, *means.values()] for name, means in self.by_sequence.items()]
        rows.append(["all objects", *self.global_.values()])
        return Table(("sequence", "J&F", "J", "recall", "decay", "F", "recall", "decay"), rows, total=True, bold=1)

    def csv_files(self, set_name: str = "val") -> dict[str, bytes]:
        """The official CSV tables, global_results-SET.csv and per-sequence_results-SET.csv, by file name.

        Ids that no mask has are left out.
        """
        rows = [
            [f"{name}_{id_}", scores.jaccard_statistics.mean, scores.boundary_statistics.mean]
            for name, id_, scores in self._objects()
            if not scores.absent
        ]
        means, objects = csv_names(set_name)
        return {
            means: _table(GLOBAL_COLUMNS, [list(self.global_.values())]),
            objects: _table(("Sequence", "J-Mean", "F-Mean"), rows),
        }

    def write_csv(self, folder: Path, set_name: str = "val") -> None:
        """Write `csv_files` to a folder. Raises InputError if that fails or would replace other files."""
        Tables(folder, CSV_NAMES).write(self.csv_files(set_name))

    def report(self) -> str:
        """The table, the means in one line, the worst frame, and the notes."""
        if not self.sequences:
            return "\n".join([repr(self), *(f"warning: {note}" for note in self.notes)])
        lines = [repr(self), "", "  ".join(f"{column} {shown(value)}" for column, value in self.global_.items())]
        if any(scores.absent for _, _, scores in self._objects()):
            official = "  ".join(f"{column} {shown(value)}" for column, value in self.official.items())
            lines.append(f"with ids that no mask has, as the official code counts: {official}")
        for frame in self.worst(1):
            lines.append(
                f"worst frame: {said(f'{frame.sequence}/{frame.file}')}, object {frame.object_id}: "
                f"J {frame.jaccard:.3f}, F {frame.boundary:.3f}"
            )
        return "\n".join([*lines, *(f"warning: {note}" for note in self.notes)])

    def _objects(self) -> Iterator[tuple[str, int, ObjectScores]]:
        for name, objects in self.sequences.items():
            yield from ((name, id_, scores) for id_, scores in enumerate(objects, start=1))

    def _frames(self) -> Iterator[Frame]:
        for name, id_, scores in self._objects():
            if not scores.absent:
                values = zip(self.files.get(name, ()), scores.jaccard, scores.boundary, strict=False)
                yield from (Frame(name, id_, file, float(j), float(f)) for file, j, f in values)


def _row(frame: Frame) -> tuple[str, int, str, float, float, float]:
    """In the order of FRAME_COLUMNS."""
    return frame.sequence, frame.object_id, frame.file, frame.jf, frame.jaccard, frame.boundary


def _objects_from(content: dict[str, Any], frames: int) -> tuple[ObjectScores, ...]:
    """The objects of one sequence from JSON; ids that are missing were in no mask, which is perfect."""
    found = []
    if wrong := [id_ for id_ in content if not 1 <= int(id_) <= LARGEST_ID]:
        raise ValueError(f"an object is {wrong[0]}, not one of 1 to {LARGEST_ID}")
    for id_ in range(1, max(map(int, content), default=0) + 1):
        one = content.get(str(id_))
        jaccard, boundary = (np.array(one[name], np.float64) if one else np.ones(frames) for name in ("J", "F"))
        if not jaccard.shape == boundary.shape == (frames,):
            raise ValueError(f"object {id_} has {jaccard.size} and {boundary.size} values for {frames} frames")
        pixels = ObjectPixels.from_json(one["pixels"]) if one and "pixels" in one else None
        if pixels and len(pixels.truth) != frames:
            raise ValueError(f"object {id_} has pixels of {len(pixels.truth)} frames, not of {frames}")
        found.append(ObjectScores(jaccard, boundary, statistics(jaccard), statistics(boundary), one is None, pixels))
    return tuple(found)


def _summary(objects: Iterable[ObjectScores]) -> list[float]:
    """Means over objects, in the order of GLOBAL_COLUMNS."""
    rows = [[*scores.jaccard_statistics, *scores.boundary_statistics] for scores in objects]
    columns = [mean(column) for column in np.array(rows).reshape(-1, 6).T]
    return [(columns[0] + columns[3]) / 2, *columns]


def _json(values: np.ndarray | float) -> list[float | None] | float | None:
    plain = np.asarray(values).astype(object)
    plain[np.isnan(values)] = None
    return plain.tolist()


def csv_names(set_name: str) -> tuple[str, str]:
    """File names of a set's official tables: of the means, and of each object."""
    return f"global_results-{set_name}.csv", f"per-sequence_results-{set_name}.csv"


def _table(columns: Sequence[str], rows: list[list]) -> bytes:
    """CSV as of pandas' `to_csv(index=False, float_format="%.3f")`; NaN is an empty field."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    for row in rows:
        writer.writerow(x if isinstance(x, str) else "" if math.isnan(x) else f"{x:.3f}" for x in row)
    return text.getvalue().encode()
