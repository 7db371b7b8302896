"""A comparison as text: the tables that are printed, and tables for a paper. Does not import torch."""

import csv
import io
import math
import re
from collections.abc import Callable, Iterator, Sequence
from html import escape
from pathlib import PurePath
from typing import NamedTuple

from timecycle.errors import printable
from timecycle.evaluation.davis.comparison import ATTRIBUTES, Comparison, FrameDifference, Versus
from timecycle.evaluation.davis.paired import LEAST_CLUSTERS, Difference
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, Scores
from timecycle.evaluation.printed import Cell, Table

SHOWN = 5
"""Objects in the printed list of the largest differences."""
UNITS = {"size": (100, "% of the frame"), "speed": (1, "% of its size a frame"), "length": (1, "frames")}
"""Factor and unit in which limits of attributes are shown."""
HASH = re.compile(r"\b[0-9a-f]{40,}\b")
LESS_IS_BETTER = ("J-Decay", "F-Decay")
"""Of GLOBAL_COLUMNS."""


class Titled(NamedTuple):
    """A table with a sentence above it, and one below it; both may be empty."""

    above: str
    table: Table
    below: str = ""


def text(comparison: Comparison) -> str:
    """What `timecycle compare` prints: means, settings that differ, then each run against the baseline."""
    parts = ["\n".join(filter(None, (each.above, each.table.text(), each.below))) for each in _tables(comparison)]
    return "\n\n".join([*parts, *(f"warning: {note}" for note in comparison.notes)])


def html(comparison: Comparison) -> str:
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
    for versus in comparison.versus:
        yield from _versus(versus)
    if comparison.causes:
        found: list[list[Cell]] = [
            [cause, *(counts[cause] for counts in comparison.causes)] for cause in comparison.causes[0]
        ]
        yield Titled("", Table(("objects by cause of failure", *names), found))


def _versus(versus: Versus) -> Iterator[Titled]:
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
    """What differs beside the scores, as it is shown: of hashes the first characters."""
    return [
        (name, [HASH.sub(lambda found: found[0][:12], printable(value)) for value in values])
        for name, values in comparison.settings.items()
    ]


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


def latex(names: Sequence[str], scores: Sequence[Scores]) -> str:
    """A table for a paper in LaTeX, with a row per run: see `_percent`. Needs the package booktabs."""
    rows = _percent(scores, lambda text: rf"\textbf{{{text}}}")
    lines = [
        r"\begin{tabular}{lccccccc}",
        r"\toprule",
        r" & & \multicolumn{3}{c}{$\mathcal{J}$} & \multicolumn{3}{c}{$\mathcal{F}$} \\",
        r"\cmidrule(lr){3-5} \cmidrule(lr){6-8}",
        r"Method & $\mathcal{J}\&\mathcal{F}$ $\uparrow$"
        + r" & Mean $\uparrow$ & Recall $\uparrow$ & Decay $\downarrow$" * 2
        + r" \\",
        r"\midrule",
        *(f"{' & '.join([_latex(name), *row])} \\\\" for name, row in zip(names, rows, strict=True)),
        r"\bottomrule",
        r"\end{tabular}",
    ]
    return "\n".join(lines)


def markdown(names: Sequence[str], scores: Sequence[Scores]) -> str:
    """The same in Markdown."""
    rows = _percent(scores, lambda text: f"**{text}**")
    lines = [["Method", *GLOBAL_COLUMNS], ["---", *["---:"] * len(GLOBAL_COLUMNS)]]
    lines += [[_markdown(name), *row] for name, row in zip(names, rows, strict=True)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def comma_separated(names: Sequence[str], scores: Sequence[Scores]) -> str:
    """The same as CSV, with nothing in bold; a field is empty where nothing is scored."""
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(["Method", *GLOBAL_COLUMNS])
    for name, row in zip(names, _percent(scores, str), strict=True):
        writer.writerow([name, *("" if value == "-" else value for value in row)])
    return file.getvalue().rstrip("\n")


def _percent(scores: Sequence[Scores], best: Callable[[str], str]) -> list[list[str]]:
    """For each run GLOBAL_COLUMNS in per cent, with one decimal; `best` marks the best of each column."""
    means = [each.global_ for each in scores]
    shown = [[_number(100 * row[name], 1) for name in GLOBAL_COLUMNS] for row in means]
    for column, name in enumerate(GLOBAL_COLUMNS):
        known = [float(row[column]) for row in shown if row[column] != "-"]
        for row in shown if known else ():
            wanted = min(known) if name in LESS_IS_BETTER else max(known)
            if row[column] != "-" and float(row[column]) == wanted:
                row[column] = best(row[column])
    return shown


def _latex(text: str) -> str:
    special = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
    return "".join(special.get(c, f"\\{c}" if c in "&%$#_{}" else c) for c in printable(text))


def _markdown(text: str) -> str:
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>#|~&" else c for c in printable(text))


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def signed(value: float) -> str:
    """A difference with its sign; 0 has none."""
    text = _number(value)
    if math.isnan(value):
        return text
    return f"{value:+.3f}" if float(text) else text.lstrip("-")
