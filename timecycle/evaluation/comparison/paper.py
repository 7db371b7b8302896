"""Tables of several results for a paper: LaTeX, Markdown, CSV. Does not import torch."""

import csv
import io
import math
from collections.abc import Callable, Sequence

from timecycle.errors import printable
from timecycle.evaluation.davis.tables import GLOBAL_COLUMNS, Scores

LESS_IS_BETTER = ("J-Decay", "F-Decay")
"""Of GLOBAL_COLUMNS."""


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
    shown = [[_percentage(row[name]) for name in GLOBAL_COLUMNS] for row in means]
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


def _percentage(share: float) -> str:
    return "-" if math.isnan(share) else f"{100 * share:.1f}"
