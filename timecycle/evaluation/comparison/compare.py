"""Runs compared on the same objects: paired differences, their intervals, and where they are largest. No torch."""

import math
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from html import escape
from pathlib import Path, PurePath
from typing import NamedTuple

from timecycle.data.sequences import distinct_names
from timecycle.errors import InputError, printable, said
from timecycle.evaluation.comparison.attributes import attributes
from timecycle.evaluation.comparison.comparable import check_same_frames, comparable
from timecycle.evaluation.comparison.differences import (
    ATTRIBUTES,
    FrameDifference,
    Versus,
    compared,
    has_pixels,
    left_out,
    missing,
)
from timecycle.evaluation.comparison.paired import LEAST_CLUSTERS, Difference
from timecycle.evaluation.davis import causes
from timecycle.evaluation.davis.run import EvaluationRun, read_run
from timecycle.evaluation.davis.tables import Scores
from timecycle.evaluation.printed import Cell, Table
from timecycle.viewing import pages

SHOWN = 5
"""Objects in the printed list of the largest differences."""
UNITS = {"size": (100, "% of the frame"), "speed": (1, "% of its size a frame"), "length": (1, "frames")}
"""Factor and unit in which limits of attributes are shown."""


@dataclass(frozen=True, eq=False, repr=False)
class Comparison:
    """Two or more runs on the same objects; the first is the baseline. Printed, it is tables."""

    names: tuple[str, ...]
    """Of the runs."""
    scores: tuple[Scores, ...]
    """Of the runs."""
    versus: tuple[Versus, ...]
    """Each run but the first against the first."""
    settings: dict[str, tuple[str, ...]]
    """What differs between the runs beside their scores, such as features: by name, a text for each run."""
    causes: tuple[dict[str, int], ...]
    """How often each cause of failure is found, for each run, see `timecycle.evaluation.davis.causes`."""
    notes: tuple[str, ...] = ()
    """Sentences on what was left out."""
    runs: tuple[EvaluationRun, ...] = ()
    """The runs, if they are results folders."""

    def __repr__(self) -> str:
        return _text(self)

    def _repr_html_(self) -> str:
        return _html(self)


def compare(
    runs: Sequence[Scores | EvaluationRun | Path | str],
    names: Sequence[str] | None = None,
    sequences: Sequence[str] | None = None,
    across: Collection[str] = (),
) -> Comparison:
    """Compare runs object by object. The first is the baseline, against which each other is compared.

    Args:
        runs: at least two: scores, or results folders of `timecycle evaluate` or `evaluate_davis`.
        names: of the runs; by default those of their folders.
        sequences: names of sequences to compare; by default all, which must then be the same in all runs.
        across: fields of the protocol that may differ, such as ("k", "radius"); ("protocol",) for all.

    Differences are of means over objects, as in `Scores`; intervals resample sequences, see `mean_difference`. The sign
    test counts sequences. Objects that are not scored in one of the runs are left out. Scores in memory do not know
    their protocol: only the protocols of folders are compared.

    Raises InputError if the runs are not comparable, see `comparable`, or a folder holds no scores.
    """
    if len(runs) < 2:
        raise InputError(f"{len(runs)} run{'s' * (len(runs) != 1)} to compare; expected at least two")
    read = [read_run(run) if isinstance(run, Path | str) else run for run in runs]
    found = [run if isinstance(run, Scores) else _scores_of(run) for run in read]
    called = _names(read, names)
    if sequences is not None:
        found = [_only(scores, sequences, name) for scores, name in zip(found, called, strict=True)]
    folders = tuple(run for run in read if isinstance(run, EvaluationRun))
    whole = len(folders) == len(read)
    settings = comparable(folders, called, across) if whole else {}
    check_same_frames(found, called)
    classes = attributes(found[0]) if has_pixels(found[0]) else {}
    against = [compared(found[0], other, called[0], name, classes) for other, name in _others(found, called)]
    return Comparison(
        tuple(called),
        tuple(found),
        tuple(against),
        settings,
        tuple(causes.counts(causes.causes_of(scores)) for scores in found) if all(map(has_pixels, found)) else (),
        tuple(left_out(found[0], other, name) for other, name in _others(found, called) if missing(found[0], other)),
        folders if whole else (),
    )


def _others(found: list[Scores], called: list[str]) -> list[tuple[Scores, str]]:
    return list(zip(found[1:], called[1:], strict=True))


def _scores_of(run: EvaluationRun) -> Scores:
    if run.scores is None:
        raise InputError(
            f"{run.folder} holds no scores; expected a finished run on sequences with annotations of every frame"
        )
    return run.scores


def _names(runs: Sequence[Scores | EvaluationRun], names: Sequence[str] | None) -> list[str]:
    """The given names, or those of the folders with as many parents as tell them apart."""
    if names is not None:
        if len(names) != len(runs) or len(set(names)) < len(names):
            raise InputError(
                f"the names of {len(runs)} runs are {', '.join(map(said, names))}; expected as many, all different"
            )
        return list(names)
    folders = [run.folder or Path(f"run {number}") for number, run in enumerate(runs, start=1)]
    return distinct_names([folder.resolve() for folder in folders])


def _only(scores: Scores, sequences: Sequence[str], name: str) -> Scores:
    """The scores of some sequences. Raises InputError for one that is not there."""
    for wanted in sequences:
        if wanted not in scores.sequences:
            raise InputError(
                f"sequence {said(wanted)} is not in {name}; expected some of {', '.join(map(said, scores.sequences))}"
            )
    kept = [found for found in scores.sequences if found in sequences]
    files = {found: scores.files[found] for found in kept if found in scores.files}
    return replace(scores, sequences={found: scores.sequences[found] for found in kept}, files=files)


class Titled(NamedTuple):
    """A table with a sentence above it, and one below it; both may be empty."""

    above: str
    table: Table
    below: str = ""


def _text(comparison: Comparison) -> str:
    """What `timecycle compare` prints: means, settings that differ, then each run against the baseline."""
    parts = ["\n".join(filter(None, (each.above, each.table.text(), each.below))) for each in _tables(comparison)]
    return "\n\n".join([*parts, *(f"warning: {note}" for note in comparison.notes)])


def _html(comparison: Comparison) -> str:
    """The same for a notebook."""
    parts = []
    for above, table, below in _tables(comparison):
        parts += [escape(above) and f"<p>{escape(above)}</p>", table.html(), below and f"<p>{escape(below)}</p>"]
    return "\n".join(filter(None, [*parts, *(f"<p>warning: {escape(note)}</p>" for note in comparison.notes)]))


def _tables(comparison: Comparison) -> Iterator[Titled]:
    names = comparison.names
    means: list[list[Cell]] = [
        [name, *scores.global_.values()] for name, scores in zip(names, comparison.scores, strict=True)
    ]
    yield Titled("", Table(("run", "J&F", "J", "recall", "decay", "F", "recall", "decay"), means, bold=1))
    if comparison.settings:
        yield Titled("", Table(("what differs", *names), [[name, *each] for name, each in shown_settings(comparison)]))
    for each in comparison.versus:
        yield from _of_versus(each)
    if comparison.causes:
        found: list[list[Cell]] = [
            [cause, *(counts[cause] for counts in comparison.causes)] for cause in comparison.causes[0]
        ]
        yield Titled("", Table(("objects by cause of failure", *names), found))


def _of_versus(versus: Versus) -> Iterator[Titled]:
    """The tables of one run against the baseline."""
    whole = versus.measures["J&F"]
    above = (
        f"{printable(versus.name)} minus {printable(versus.baseline)}: means over {whole.objects} objects of "
        f"{whole.sequences} sequences"
    )
    few = f"An interval needs at least {LEAST_CLUSTERS} sequences."
    yield Titled(above, _measures(versus), few if whole.sequences < LEAST_CLUSTERS else "")
    if versus.classes:
        none = any(one.difference.sequences < LEAST_CLUSTERS for one in versus.classes)
        yield Titled("", _classes(versus), few if none and whole.sequences >= LEAST_CLUSTERS else "")
    yield Titled("", _largest(versus))


def _measures(versus: Versus) -> Table:
    rows: list[list[Cell]] = []
    for name, found in versus.measures.items():
        sign = versus.signs[name]
        counts = sign.better, sign.worse, sign.equal
        rows.append([name, signed(found.mean), interval(found), *counts, f"p = {p_value(sign.p)}"])
    return Table(("", "difference", "95 % interval", "better in", "worse in", "equal in", "sign test"), rows, bold=1)


def _classes(versus: Versus) -> Table:
    rows: list[list[Cell]] = []
    for attribute, kind, baseline, other, found in versus.classes:
        means = baseline, other, signed(found.mean), interval(found)
        rows.append([f"{kind} ({attribute})", *means, found.objects, found.sequences])
    runs = versus.baseline, versus.name
    headings = ("J&F of objects that are", *runs, "difference", "95 % interval", "objects", "sequences")
    return Table(headings, rows, bold=3)


def _largest(versus: Versus) -> Table:
    rows: list[list[Cell]] = []
    for one in [one for one in versus.objects if one.difference][:SHOWN]:
        frame = f"frame {frame_name(one.frame)}"
        place = f"{one.sequence}, object {one.object_id}"
        rows.append([place, *one.means, signed(one.difference), frame, signed(one.frame.difference)])
    headings = ("J&F differs most in", versus.baseline, versus.name, "difference", "most in", "difference there")
    return Table(headings, rows, bold=3, empty="No object's J&F differs.")


def frame_name(frame: FrameDifference) -> str:
    """A frame's name: that of its file without the suffix, or else its number."""
    return PurePath(frame.file).stem or str(frame.position + 1)


def shown_settings(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What differs beside the scores, as it is shown."""
    return [(name, [printable(value) for value in values]) for name, values in comparison.settings.items()]


def class_limits(attribute: str, kind: str) -> str:
    """The limits of a class of objects in words, such as `2 to 8 % of the frame`."""
    scale, unit = UNITS[attribute]
    ends = {name: limit * scale for name, limit in ATTRIBUTES[attribute].items()}
    kinds = list(ends)
    low = ends[kinds[kinds.index(kind) - 1]] if kind != kinds[0] else None
    high = ends[kind]
    if low is None:
        return f"less than {high:g} {unit}"
    return f"{low:g} {unit} or more" if math.isinf(high) else f"{low:g} to {high:g} {unit}"


def interval(found: Difference) -> str:
    """An interval as `[-0.010, +0.020]`; a dash if there is none."""
    if math.isnan(found.low):
        return "-"
    return f"[{signed(found.low)}, {signed(found.high)}]"


def p_value(p: float) -> str:
    """A probability with two significant digits."""
    return f"{p:.2g}" if p < 0.1 else f"{p:.2f}"


def signed(value: float) -> str:
    """A difference with its sign, as pages show it but in ASCII."""
    return pages.signed(value).replace("−", "-").replace("–", "-")
