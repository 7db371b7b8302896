"""The page of a results folder: what it shows. Its look is templates/report.html.jinja in `timecycle.viewing`."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from timecycle.data.sequences import Sequence
from timecycle.data.synthetic import MARKER
from timecycle.errors import printable
from timecycle.evaluation.davis.causes import CAUSES, Cause, cause_at, causes_of, counts
from timecycle.evaluation.davis.report_frames import (
    FIRST,
    OF_ONE_OBJECT,
    Inspected,
    Pictures,
    WorstFrame,
    inspection_name,
    kept_inspections,
    worst_frames,
)
from timecycle.evaluation.davis.report_run import facts, settings
from timecycle.evaluation.davis.run import EvaluationRun, read_run
from timecycle.evaluation.davis.scores import left_out
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, ObjectScores, Scores
from timecycle.locks import owned
from timecycle.manifest import NOTES, PAGE, PICTURES, OwnFile, Report
from timecycle.viewing.pages import linked, render
from timecycle.viewing.palette import line_colors

COLUMNS = ("J&F", "J mean", "J recall", "J decay", "F mean", "F recall", "F decay")
"""Headings of GLOBAL_COLUMNS."""
SYNTHETIC_NOTE = "The videos are synthetic: scores on them say nothing about real video."
UNFINISHED_NOTE = "The evaluation did not finish, and there are no scores; the same command again finishes it."
DIGITS = 3
"""Of scores."""


@dataclass(frozen=True)
class Row:
    """Of the table of scores: a sequence, one of its objects, or all objects."""

    name: str
    values: list[float]
    """In the order of GLOBAL_COLUMNS."""
    causes: str = ""
    anchor: str = ""
    color: str = ""
    """Of the object, as CSS."""
    objects: "list[Row]" = field(default_factory=list)


@dataclass(frozen=True)
class Part:
    """One sequence."""

    name: str
    number: int
    """From 1; `sequence-<number>` and `video-<number>` are ids in the page."""
    score: float | None
    """J&F; None without annotations of later frames."""
    frames: int
    given: str
    """URL of the picture of the first frame with its mask."""
    video: str | None
    size: tuple[int, int]
    """Width and height of a frame."""
    fps: float
    causes: list[Cause]
    chart: dict[str, Any] | None
    """J and F over time, as base.html.jinja says."""
    pictures: list[tuple[str, str]]
    """Name of a frame, and URL of its picture with the result, where there is no video or no score."""


@dataclass(frozen=True)
class Worst:
    """One of the worst frames."""

    frame: WorstFrame
    name: str
    """Of the frame."""
    part: Part
    pictures: dict[str, str]
    """URLs by kind."""
    cause: str
    """Name of the cause of its failure; empty if none is named."""
    color: str
    """Of the object, as CSS."""
    inspected: str | None
    """URL of a picture by `timecycle inspect`."""


def check_free(sequences: list[Sequence], folder: Path) -> None:
    """Raise InputError if a page of these sequences would replace a file that this program did not write."""
    Report(folder).check_free([PAGE, *(f"{PICTURES}/{sequence.name}/{FIRST}" for sequence in sequences)])


def rewrite_report(
    folder: Path, output: Path | None = None, single_file: bool = False, inspect: int | None = None
) -> Path:
    """Write the page of a results folder from its files and the data.

    Args:
        folder: of an evaluation, also of a version whose results.json holds less.
        output: the page, with embedded pictures; by default report.html in the folder.
        single_file: embed the videos, too.
        inspect: so many of the worst frames that it shows get a picture of where their labels come from, for which
            their sequences are propagated again; by default those keep one that have one.

    Returns the page's path. Raises InputError if the folder holds no results, data have moved, a file is damaged, or
    the page cannot be written or would replace another's file; with `inspect` also as `inspect_run`.
    """
    run = read_run(folder)
    sequences = run.sequences()
    if inspect is None:
        inspected = kept_inspections(folder)
    else:
        from timecycle.evaluation.davis.explanations import explained_again  # imports torch

        inspected = explained_again(run, sequences, inspect)
    with nullcontext() if output is not None else owned(folder, NOTES):
        return write_page(run, sequences, output, single_file=single_file, inspected=inspected)


def write_page(
    run: EvaluationRun,
    sequences: list[Sequence],
    file: Path | None = None,
    *,
    single_file: bool = False,
    inspected: Inspected | None = None,
) -> Path:
    """Write the page of a run.

    Args:
        run: its folder, options, masks and scores.
        sequences: those to show.
        file: where to; by default report.html in the run's folder, with pictures beside it. In another file they are
            embedded, and videos are linked.
        single_file: embed pictures and videos.
        inspected: JPEG pictures by `timecycle inspect`, by sequence and index of the frame; linked from worst frames.

    Returns the page's path. Raises InputError if a file cannot be read or written, or is not this program's.
    """
    if run.scores and not run.scores.sequences:
        run = replace(run, scores=None)
    pictures = Pictures(run, embed=single_file or file is not None)
    beside = run.folder if file is None else file.parent
    causes = causes_of(run.scores) if run.scores else []
    parts = [
        _part(run, sequence, number, causes, pictures, None if single_file else beside)
        for number, sequence in enumerate(sequences, start=1)
    ]
    data = Path(run.options.get("data", run.folder))
    notes = [SYNTHETIC_NOTE] if (data / MARKER).is_file() else []
    if run.scores is None and any(sequence.scored for sequence in sequences):
        notes.append(UNFINISHED_NOTE)
    notes += left_out(sequences)
    said = dict.fromkeys([*notes, *(n for s in sequences for n in s.notes), *(run.scores.notes if run.scores else ())])
    content = render(
        "report.html.jinja",
        title=printable(data.name),
        run=printable(run.name),
        facts=facts(run, sequences),
        columns=COLUMNS,
        rows=_rows(run.scores, causes, parts),
        means=run.scores.global_ if run.scores else {},
        causes=[(name, count, CAUSES[name]) for name, count in counts(causes).items()] if run.scores else [],
        worst=_worst(run, sequences, parts, causes, pictures, inspected or {}),
        of_one_object=OF_ONE_OBJECT,
        parts=parts,
        notes=[printable(note) for note in said],
        settings=settings(run),
    )
    if file is None:
        Report(run.folder).replace({PAGE: content, **pictures.files})
        return run.folder / PAGE
    OwnFile(file).replace(content)
    return file


def _objects(run: EvaluationRun, name: str) -> dict[int, ObjectScores]:
    """The scored objects of a sequence by id."""
    found = run.scores.sequences.get(name, ()) if run.scores else ()
    return {id_: one for id_, one in enumerate(found, start=1) if not one.absent}


def _rows(scores: Scores | None, causes: list[Cause], parts: list[Part]) -> list[Row]:
    """The table: a row for each sequence, and the last over all objects; empty if there are no scores."""
    if scores is None:
        return []
    anchors = {part.name: f"sequence-{part.number}" for part in parts}
    rows = []
    for name, means in scores.by_sequence.items():
        of_each = {
            id_: sorted({cause.name for cause in causes if (cause.sequence, cause.object_id) == (name, id_)})
            for id_, one in enumerate(scores.sequences[name], start=1)
            if not one.absent
        }
        objects = [
            Row(f"object {id_}", _values(scores.sequences[name][id_ - 1]), ", ".join(found), color=_css(id_))
            for id_, found in of_each.items()
        ]
        shown = printable(name)
        together = ", ".join(sorted({cause for found in of_each.values() for cause in found}))
        rows.append(Row(shown, list(means.values()), together, anchors.get(shown, ""), objects=objects))
    return [*rows, Row("all objects", list(scores.global_.values()))]


def _values(one: ObjectScores) -> list[float]:
    j, f = one.jaccard_statistics, one.boundary_statistics
    return [(j.mean + f.mean) / 2, *j, *f]


def _css(id_: int) -> str:
    return "light-dark({}, {})".format(*line_colors(id_))


def _part(
    run: EvaluationRun,
    sequence: Sequence,
    number: int,
    causes: list[Cause],
    pictures: Pictures,
    beside: Path | None,
) -> Part:
    """A sequence's part of the page. beside: folder of the page, to link the video from; None embeds it."""
    objects = _objects(run, sequence.name)
    own = [cause for cause in causes if cause.sequence == sequence.name]
    given, size = pictures.given(sequence)
    video = run.video(sequence.name)
    url = linked(video, beside) if video else None
    last = len(sequence.frames) - 1
    score = run.scores.by_sequence[sequence.name][GLOBAL_COLUMNS[0]] if objects and run.scores else math.nan
    shown = [] if video and objects else [index for index in sorted({max(1, last // 2), last}) if 0 < index <= last]
    return Part(
        printable(sequence.name),
        number,
        None if math.isnan(score) else score,
        len(sequence.frames),
        given,
        url,
        size,
        run.fps(sequence.name, sequence.fps),
        [replace(cause, words=printable(cause.words)) for cause in own],
        _chart(sequence, number, objects, own, url is not None),
        [(printable(sequence.frames[index].stem), pictures.result(sequence, index)) for index in shown],
    )


def _chart(
    sequence: Sequence, number: int, objects: dict[int, ObjectScores], causes: list[Cause], video: bool
) -> dict[str, Any] | None:
    """J and F over the scored frames, which are all but the first and the last."""
    scored = range(1, len(sequence.frames) - 1)
    if not objects or not scored:
        return None
    panels = []
    for label, values in (
        ("J", {id_: one.jaccard for id_, one in objects.items()}),
        ("F", {id_: one.boundary for id_, one in objects.items()}),
    ):
        series = [
            {"name": f"object {id_}", "values": found.round(DIGITS), "color": line_colors(id_)}
            for id_, found in values.items()
        ]
        panels.append({"label": label, "min": 0, "max": 1, "series": series})
    chart = {
        "x": list(scored),
        "names": [printable(sequence.frames[index].stem) for index in scored],
        "x_label": "frame",
        "label": f"J and F of {printable(sequence.name)} over time",
        "panels": panels,
        "marks": _marks(causes, len(objects) > 1),
    }
    return chart | ({"video": f"video-{number}"} if video else {})


def _marks(causes: list[Cause], numbered: bool) -> list[dict[str, Any]]:
    """The frames from which on objects fail; of the same frame together."""
    texts: dict[int, list[str]] = {}
    for cause in causes:
        name = f"{cause.object_id} {cause.name}" if numbered else cause.name
        texts.setdefault(cause.first + 1, []).append(name)  # frame 0 is not scored
    return [{"x": frame, "text": ", ".join(names)} for frame, names in sorted(texts.items())]


def _worst(
    run: EvaluationRun,
    sequences: list[Sequence],
    parts: list[Part],
    causes: list[Cause],
    pictures: Pictures,
    inspected: Inspected,
) -> list[Worst]:
    """The worst frames of the sequences, with their pictures."""
    if run.scores is None:
        return []
    by_name = {sequence.name: (sequence, part) for sequence, part in zip(sequences, parts, strict=True)}
    found = []
    for frame in worst_frames(run.scores):
        if frame.sequence not in by_name:
            continue
        sequence, part = by_name[frame.sequence]
        cause = cause_at(causes, frame.sequence, frame.object_id, frame.index - 1)  # frame 0 is not scored
        picture = inspected.get((frame.sequence, frame.index))
        made = None if picture is None else pictures.add(frame.sequence, inspection_name(frame.index), picture)
        name = printable(sequence.frames[frame.index].stem)
        shown = pictures.compared(sequence, frame)
        found.append(Worst(frame, name, part, shown, cause.name if cause else "", _css(frame.object_id), made))
    return found
