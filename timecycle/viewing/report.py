"""The page of an evaluation: scores and pictures, as one HTML file that opens from disk. Does not import torch.

What it shows is chosen by `timecycle.evaluation.davis.report`; the page is `report.html.jinja` beside this file.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any
from urllib.parse import quote

import cv2
import numpy as np

from timecycle.data.images import jpeg_bytes
from timecycle.viewing.overlays import paint

LONGEST_SIDE = 960  # pixels of a picture; larger frames are reduced


@dataclass(frozen=True)
class Pair:
    """One frame of a sequence: its true mask, if there is one, and the result."""

    title: str
    """Why it is shown."""
    frame: str
    """Its name."""
    words: str
    """Its scores; may be empty."""
    truth: str | None
    """Paths of the pictures, as `link` makes them."""
    result: str


@dataclass(frozen=True)
class Part:
    """One sequence."""

    name: str
    anchor: str
    """Where the page's table leads to."""
    score: float | None
    """J&F; None without annotations of later frames."""
    first: str
    """Name of the first frame."""
    frames: int
    given: str
    """Path of the picture of the first frame."""
    video: str | None
    pairs: Sequence[Pair]


def link(*names: str) -> str:
    """The URL of a file, relative to the page's folder, from the components of its path."""
    return "/".join(quote(os.fsencode(name)) for name in names)


def picture(rgb: np.ndarray, mask: np.ndarray) -> bytes:
    """A frame, uint8 RGB [H, W, 3], with its mask, uint8 ids [H, W], as JPEG of at most `LONGEST_SIDE` pixels."""
    scale = LONGEST_SIDE / max(mask.shape)
    if scale < 1:
        size = [max(1, round(scale * side)) for side in mask.shape[::-1]]
        rgb = cv2.resize(rgb, size, interpolation=cv2.INTER_AREA)
        mask = cv2.resize(mask, size, interpolation=cv2.INTER_NEAREST)
    return jpeg_bytes(paint(rgb, mask))


def page(
    title: str,
    facts: Sequence[tuple[str, str]],
    columns: Sequence[str],
    rows: Sequence[tuple[str, str | None, Sequence[float]]],
    notes: Sequence[str],
    parts: Sequence[Part],
) -> bytes:
    """The page as UTF-8.

    Args:
        title: of the page.
        facts: name and value of what is stated above the table; "time" is the one that differs from run to run.
        columns: headings of the scores, the most important first.
        rows: name, the part's anchor or None, and the scores from 0 to 1; the last row is over all objects.
        notes: sentences on the data.
        parts: the sequences.
    """
    text = _template().render(title=title, facts=facts, columns=columns, rows=rows, notes=notes, parts=parts)
    return text.encode(errors="backslashreplace")


@cache
def _template() -> Any:
    import jinja2  # not at the start of a command, which it would slow down

    loader = jinja2.PackageLoader("timecycle.viewing", "")
    environment = jinja2.Environment(loader=loader, autoescape=True, undefined=jinja2.StrictUndefined)
    environment.globals.update(number=_number, share=_share)
    return environment.get_template("report.html.jinja")


def _number(value: float) -> str:
    """A score; a dash means that nothing is scored."""
    return "-" if math.isnan(value) else f"{value:.3f}"


def _share(value: float) -> int:
    """A score in per cent, for the length of its bar."""
    return 0 if math.isnan(value) else round(100 * min(1.0, max(0.0, value)))
