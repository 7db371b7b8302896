"""Results that print as tables: text in a terminal, HTML in a notebook. Needs no torch."""

import html
import math
import shutil
import sys
from collections.abc import Sequence
from typing import NamedTuple

from timecycle.errors import printable

GAP = "   "
LEAST_NAME = 12  # characters of a shortened name
Cell = str | int | float


class Table(NamedTuple):
    """A table of results; a float is shown with three decimals, NaN as a dash."""

    headings: Sequence[str]
    """One for each column."""
    rows: Sequence[Sequence[Cell]]
    """Cells of the columns; a column holds text or numbers."""
    total: bool = False
    """Whether the last row is over all others."""
    bold: int | None = None
    """The column that matters most."""
    empty: str = ""
    """What is shown if there are no rows."""

    def text(self, columns: int | None = None) -> str:
        """The table as lines; with `columns`, names in the first column are shortened so that lines fit if possible."""
        if not self.rows:
            return self.empty
        cells = [[shown(cell) for cell in row] for row in self.rows]
        width = sum(max(map(len, column)) for column in zip(self.headings, *cells, strict=True))
        over = 0 if columns is None else width + len(GAP) * (len(self.headings) - 1) - columns
        if over > 0:
            longest = max(len(row[0]) for row in cells)
            cells = [[_shortened(row[0], max(longest - over, LEAST_NAME)), *row[1:]] for row in cells]
        lines = [list(self.headings), *cells]
        widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
        left = self._left()
        text = [
            GAP.join(cell.ljust(width) if of_text else cell.rjust(width) for cell, width, of_text in row).rstrip()
            for row in (zip(line, widths, left, strict=True) for line in lines)
        ]
        if self.total:
            text.insert(-1, "-" * max(map(len, text)))
        return "\n".join(text)

    def html(self) -> str:
        """The table as an HTML element that needs no style sheet."""
        if not self.rows:
            return f"<p>{html.escape(self.empty)}</p>"
        lines = [_html_row("th", self.headings, self._left())]
        for index, row in enumerate(self.rows):
            whole = self.total and index == len(self.rows) - 1
            lines.append(_html_row("td", [shown(cell) for cell in row], self._left(), None if whole else self.bold))
        if self.total:
            lines[-1] = lines[-1].replace("<tr>", '<tr style="border-top:1px solid; font-weight:bold">', 1)
        style = "border-collapse:collapse; margin:0 0 1em; font-variant-numeric:tabular-nums"
        head, body = lines[0], "\n".join(lines[1:])
        return f'<table style="{style}">\n<thead>{head}</thead>\n<tbody>\n{body}\n</tbody>\n</table>'

    def _left(self) -> list[bool]:
        """Which columns hold text, aligned left."""
        return [isinstance(cell, str) for cell in self.rows[0]]


class Printed:
    """Base of results: printed, or as the value of a notebook's cell, they are a table."""

    def _table(self) -> Table:
        raise NotImplementedError

    def __repr__(self) -> str:
        terminal = getattr(sys.stdout, "isatty", bool)()  # a notebook's or a logger's stdout may have no such method
        return self._table().text(shutil.get_terminal_size().columns if terminal else None)

    def _repr_html_(self) -> str:
        return self._table().html()


def shown(cell: Cell) -> str:
    """A cell's text."""
    if isinstance(cell, float):
        return "-" if math.isnan(cell) else f"{cell:.3f}"
    return printable(str(cell))


def _shortened(name: str, most: int) -> str:
    """A name of at most so many characters, without its middle if it is longer."""
    if len(name) <= most:
        return name
    kept = most - len("...")
    return f"{name[: kept - kept // 2]}...{name[len(name) - kept // 2 :]}"


def _html_row(tag: str, cells: Sequence[str], left: Sequence[bool], bold: int | None = None) -> str:
    """A row of cells of an HTML table."""
    parts = []
    for index, (cell, of_text) in enumerate(zip(cells, left, strict=True)):
        inner = html.escape(cell)
        inner = f"<b>{inner}</b>" if index == bold else inner
        style = f"padding:.2em .7em; text-align:{'left' if of_text else 'right'}"
        parts.append(f'<{tag} style="{style}">{inner}</{tag}>')
    return f"<tr>{''.join(parts)}</tr>"
