"""Pages: one HTML file each, which opens from disk and needs no network. Does not import torch.

The templates are in templates/ beside this file; all extend base.html.jinja, whose first comment says what its blocks,
style and script offer.
"""

import base64
import json
import math
import mimetypes
import os
import shlex
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np

from timecycle.errors import InputError, printable
from timecycle.progress import duration as in_words
from timecycle.viewing import stills

TEMPLATES = Path(__file__).parent / "templates"
DIGITS = 4  # of numbers in charts


def render(template: str, **values: Any) -> bytes:
    """A page as UTF-8, from the name of its template, such as "report.html.jinja", and the values it uses."""
    return _environment().get_template(template).render(values).encode(errors="backslashreplace")


def link(*names: str) -> str:
    """The URL of a file, relative to the page's folder, from the components of its path."""
    return "/".join(quote(os.fsencode(name)) for name in names)


def data_url(data: bytes, name: str) -> str:
    """The content of a file as a URL; the name's suffix says what it is."""
    kind = mimetypes.guess_type(name)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def embedded(path: Path) -> str:
    """`data_url` of a file. Raises InputError if it cannot be read."""
    try:
        return data_url(path.read_bytes(), path.name)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected a file to embed in the page") from None


def command_lines(words: Sequence[str]) -> str:
    """A command as one could type it, an option a line, from the words of `sys.argv`; printable."""
    if not words:
        return ""
    name = "python -m timecycle" if Path(words[0]).name == "__main__.py" else shlex.quote(Path(words[0]).name)
    quoted = [printable(word) for word in [name, *map(shlex.quote, words[1:])]]
    return " ".join(f"\\\n    {word}" if word.startswith("-") else word for word in quoted)


def linked(path: Path, folder: Path | None) -> str:
    """The URL of a file as a page in a folder links it; with None its content, as `embedded`."""
    return embedded(path) if folder is None else link(*Path(os.path.relpath(path.resolve(), folder.resolve())).parts)


def number(value: float | None, digits: int = 3) -> str:
    """A score with a fixed number of digits, 0 without a sign; a dash means that nothing is scored."""
    return "–" if value is None or math.isnan(value) else f"{value:z.{digits}f}".replace("-", "−")


def signed(value: float | None, digits: int = 3) -> str:
    """`number` with its sign, for differences."""
    text = number(value, digits)
    return f"+{text}" if value is not None and round(value, digits) > 0 else text


def share(value: float | None) -> float:
    """A score from 0 to 1 in per cent, for the length of its bar."""
    return 0 if value is None or math.isnan(value) else round(100 * min(1.0, max(0.0, value)), 1)


def duration(seconds: float) -> str:
    """Seconds in words: 4.2 s, 40 s, 4 min, 3 h 20 min."""
    return f"{seconds:.1f} s" if seconds < 9.95 else in_words(seconds)


def plain(value: Any, digits: int = DIGITS) -> Any:
    """JSON values of nested lists, tuples, dicts and NumPy arrays: numbers rounded, None for NaN and infinities."""
    if isinstance(value, dict):
        return {name: plain(each, digits) for name, each in value.items()}
    if isinstance(value, np.ndarray):
        return plain(value.tolist(), digits)
    if isinstance(value, Sequence) and not isinstance(value, str):
        return [plain(each, digits) for each in value]
    if isinstance(value, np.generic):
        return plain(value.item(), digits)
    if isinstance(value, float):
        return _rounded(value, digits) if math.isfinite(value) else None
    return value


def _rounded(value: float, digits: int) -> float | int:
    """To `digits` places, or as many significant digits if it is small; whole numbers as int, which are shorter."""
    found = round(value, digits) if abs(value) >= 1 else float(f"{value:.{digits}g}")
    return int(found) if found == int(found) else found


@cache
def _environment() -> Any:
    import jinja2  # not at the start of a command, which it would slow down
    from markupsafe import Markup

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(TEMPLATES), autoescape=True, undefined=jinja2.StrictUndefined
    )

    def source(name: str) -> Markup:
        """A file of the templates' folder as it is."""
        return Markup((TEMPLATES / name).read_text(encoding="utf-8").strip())

    def chart_json(value: Any) -> Markup:
        """JSON for a <script> element."""
        text = json.dumps(plain(value), allow_nan=False, separators=(",", ":"))
        return Markup(text.replace("&", r"\u0026").replace("<", r"\u003c").replace(">", r"\u003e"))

    colors = {name: "rgb" + str(getattr(stills, name)) for name in ("HIT", "FALSE", "MISS")}
    environment.globals.update(
        colors=colors, source=source, number=number, signed=signed, share=share, duration=duration
    )
    environment.filters.update(chart_json=chart_json)
    return environment
