"""A comparison as text: the tables that are printed, and tables for a paper. Does not import torch."""

import csv
import io
import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path

from timecycle.errors import printable
from timecycle.evaluation.davis.comparison import Comparison, Versus
from timecycle.evaluation.davis.paired import LEAST_CLUSTERS, Difference
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, Scores

SHOWN = 5
"""Objects in the printed list of the largest differences."""
HASH = re.compile(r"\b[0-9a-f]{40,}\b")
LESS_IS_BETTER = ("J-Decay", "F-Decay")
"""Of GLOBAL_COLUMNS."""


def table(comparison: Comparison) -> str:
    """What `timecycle compare` prints: means, settings that differ, then each run against the baseline."""
    called = [printable(name) for name in comparison.names]
    means = [
        [name, *map(_number, scores.global_.values())] for name, scores in zip(called, comparison.scores, strict=True)
    ]
    parts = [_columns([["run", *GLOBAL_COLUMNS], *means])]
    if comparison.settings:
        rows = [[name, *values] for name, values in shown_settings(comparison)]
        parts.append(_columns([["what differs", *called], *rows]))
    parts += [part for versus in comparison.versus for part in _versus(versus)]
    if comparison.causes:
        causes = comparison.causes[0]
        rows = [[cause, *(str(counts[cause]) for counts in comparison.causes)] for cause in causes]
        parts.append(_columns([["objects by cause of failure", *called], *rows]))
    return "\n\n".join([*parts, *(f"warning: {note}" for note in comparison.notes)])


def _versus(versus: Versus) -> list[str]:
    """The tables of one run against the baseline."""
    whole = versus.measures["J&F"]
    first, second = printable(versus.baseline), printable(versus.name)
    title = f"{second} minus {first}: means over {whole.objects} objects of {whole.sequences} sequences"
    rows = [["", "difference", "95 % interval", "better", "worse", "equal", "sign test"]]
    for name, found in versus.measures.items():
        sign = versus.signs[name]
        counts = map(str, (sign.better, sign.worse, sign.equal))
        rows.append([name, _signed(found.mean), interval(found), *counts, f"p = {p_value(sign.p)}"])
    parts = [f"{title}\n{_columns(rows)}"]
    if versus.classes:
        rows = [["J&F of objects that are", first, second, "difference", "95 % interval", "objects", "sequences"]]
        for attribute, kind, baseline, other, found in versus.classes:
            means = _number(baseline), _number(other), _signed(found.mean), interval(found)
            rows.append([f"{kind} ({attribute})", *means, str(found.objects), str(found.sequences)])
        parts.append(_columns(rows))
    if any(found.sequences < LEAST_CLUSTERS for found in (whole, *(each.difference for each in versus.classes))):
        parts[-1] += f"\nAn interval needs at least {LEAST_CLUSTERS} sequences."
    rows = [["J&F differs most in", first, second, "difference", "most in", "difference"]]
    for one in [one for one in versus.objects if one.difference][:SHOWN]:
        place = f"{printable(one.sequence)}, object {one.object_id}"
        frame = f"frame {printable(Path(one.frame.file).stem or str(one.frame.position + 1))}"
        rows.append([place, *map(_number, one.means), _signed(one.difference), frame, _signed(one.frame.difference)])
    return [*parts, _columns(rows)] if len(rows) > 1 else parts


def shown_settings(comparison: Comparison) -> list[tuple[str, list[str]]]:
    """What differs beside the scores, as it is shown: of hashes the first characters."""
    return [
        (name, [HASH.sub(lambda found: found[0][:12], printable(value)) for value in values])
        for name, values in comparison.settings.items()
    ]


def interval(found: Difference, scale: float = 1, digits: int = 3) -> str:
    """An interval as `[-0.010, +0.020]`; a dash if there is none."""
    if math.isnan(found.low):
        return "-"
    return f"[{_signed(found.low, scale, digits)}, {_signed(found.high, scale, digits)}]"


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
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["Method", *GLOBAL_COLUMNS])
    for name, row in zip(names, _percent(scores, str), strict=True):
        writer.writerow([name, *("" if value == "-" else value for value in row)])
    return text.getvalue().rstrip("\n")


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


def _columns(rows: Sequence[Sequence[str]]) -> str:
    """Rows in columns, the first one aligned to the left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = (
        f"{row[0]:<{widths[0]}}"
        + "".join(f"  {text:>{width}}" for text, width in zip(row[1:], widths[1:], strict=True))
        for row in rows
    )
    return "\n".join(line.rstrip() for line in lines)


def _number(value: float, digits: int = 3) -> str:
    return "-" if math.isnan(value) else f"{value:.{digits}f}"


def _signed(value: float, scale: float = 1, digits: int = 3) -> str:
    """A difference with its sign; 0 has none."""
    if math.isnan(value):
        return "-"
    rounded = f"{scale * value:+.{digits}f}"
    return rounded if float(rounded) else rounded[1:]
