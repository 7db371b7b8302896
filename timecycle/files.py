"""Paths, text lists and JSON with validation; files written atomically. Does not import torch."""

import codecs
import hashlib
import json
import math
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path
from typing import Any

from timecycle.errors import InputError

PREPARED = ".prepared.json"
"""The file in a folder of frames extracted from a video that holds the settings of the extraction."""

_BYTE_ORDER_MARKS = (  # UTF-32's first, since it begins with UTF-16's
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF8, "utf-8-sig"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
)


def read_lines(path: Path, expected: str) -> list[str]:
    r"""The lines of a text file in UTF-8, or in UTF-16 or UTF-32 with a byte-order mark.

    expected: what the file should hold, for error messages. Line ends \n, \r\n or \r are removed.
    Raises InputError if the file is missing, cannot be read, or has another encoding.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise InputError(f"{path} does not exist; expected {expected}") from None
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected {expected}") from None
    encoding = next((name for mark, name in _BYTE_ORDER_MARKS if data.startswith(mark)), "utf-8")
    try:
        text = data.decode(encoding)
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise InputError(
            f"{path} is no {encoding.upper().removesuffix('-SIG')} text (line {line}: {error.reason}); expected "
            f"{expected}, in UTF-8 (iconv -f latin1 -t utf8 converts it from Latin-1)"
        ) from None
    if "\0" in text:
        raise InputError(
            f"{path} holds null characters; expected {expected}, in UTF-8, or UTF-16 with a byte-order mark"
        )
    return text.replace("\r\n", "\n").replace("\r", "\n").split("\n")


def fields(line: str) -> list[str]:
    """The fields of a line, separated by tabs if there are any, else by blanks outside of quotes, " or '."""
    if "\t" in line.strip():
        return [unquoted(field.strip()) for field in line.strip().split("\t") if field.strip()]
    return [unquoted(field) for field in re.findall(r"""\"[^"]*"(?![^ ])|'[^']*'(?![^ ])|[^ ]+""", line.strip())]


def unquoted(field: str) -> str:
    """A field without enclosing quotes."""
    return field[1:-1] if len(field) > 1 and field[0] == field[-1] and field[0] in "\"'" else field


def field(text: str) -> str:
    """A text as a field for `fields`, quoted if it holds blanks."""
    return f'"{text}"' if " " in text else text


def natural_key(name: str) -> list[tuple[int, int, str]]:
    """A sort key that compares numbers in names by value: frame8 before frame10, frame010 before frame10."""
    parts = re.split(r"(\d+)", name)
    return [(0, 0, part) if i % 2 == 0 else (1, int(part), part) for i, part in enumerate(parts)]


RESERVED = ("overlays", "results.json", "report.html")
"""Names that this program uses in a results folder, beside the sequences'."""

LONGEST_NAME = 200
"""Bytes of a name; file systems allow 255, of which temporary names need some."""


def component(name: str, source: object) -> str:
    """Check a name that is to be one component of a path, and return it.

    Raises InputError, naming the `source`, for a name that leads elsewhere ("..", "a/b"), is hidden, empty, too long,
    reserved, or holds unprintable characters.
    """
    wrong = (
        "is empty" if not name.strip() else
        "is hidden or leads to another folder" if name.startswith(".") else
        "holds a slash" if "/" in name or "\\" in name else
        "holds characters that are not printable" if not name.isprintable() else
        f"has {len(os.fsencode(name))} bytes" if len(os.fsencode(name)) > LONGEST_NAME else
        "is a name that this program uses itself" if name.casefold() in RESERVED else None
    )  # fmt: skip
    if wrong:
        shown = name if len(name) <= 50 else f"{name[:50]}..."
        raise InputError(
            f"{source}: the name {shown!r} {wrong}; expected the name of one folder, of at most {LONGEST_NAME} bytes"
        )
    return name


def inside(folder: Path, *names: str) -> Path:
    """The path of a file to write below a folder.

    Raises InputError if a component below the folder is a symbolic link, or a file where a folder is needed.
    """
    path = folder
    for name in names:
        if path.exists() and not path.is_dir():
            raise InputError(f"{path} is not a folder; expected one, or nothing there")
        path = path / name
        if path.is_symlink():
            raise InputError(f"{path} is a symbolic link, through which nothing is written; expected none in {folder}")
    return path


def check_is_file(path: Path, expected: str) -> None:
    """Raise InputError unless `path` is a regular file: not a folder, nor a pipe, whose reading might block."""
    try:
        mode = os.stat(path).st_mode
    except (FileNotFoundError, NotADirectoryError, ValueError):  # ValueError: a null byte in the name
        what = "does not exist"
    except OSError as error:
        what = f"cannot be read ({error.strerror})"
    else:
        if stat.S_ISREG(mode):
            return
        what = "is a folder" if stat.S_ISDIR(mode) else "is no file"
    raise InputError(f"{path} {what}; expected {expected}")


def read_json(path: Path, expected: str) -> Any:
    """The content of a JSON file. expected: what it should hold, for error messages.

    Raises InputError if it is missing, cannot be read, or is not valid JSON: also for nesting that is too deep, and
    numbers that are too long or not finite.
    """
    check_is_file(path, expected)
    try:
        return json.loads(path.read_bytes(), parse_constant=_finite, parse_float=_finite)
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected {expected}") from None
    except (ValueError, RecursionError) as error:
        reason = "nested too deep" if isinstance(error, RecursionError) else error
        raise InputError(f"{path} is damaged or not JSON ({reason}); expected {expected}") from None


def _finite(text: str) -> float:
    """Parse a number of a JSON file; NaN, Infinity and 1e999, which Python's json accepts, raise ValueError."""
    if not math.isfinite(number := float(text)):
        raise ValueError(f"a number is {text[:20]}")
    return number


def hash_of(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def partial_path(path: Path) -> Path:
    """The temporary name for writing `path`: in the same folder, hidden, with this process's id."""
    return path.with_name(f".{path.name}.{os.getpid()}.partial")


@contextmanager
def growing(path: Path) -> Iterator[Path]:
    """Write a file atomically: the block writes to a temporary path, which is renamed to `path` at its end.

    `path` is complete or unchanged, even if the process is killed or the machine loses power. Parent folders are
    created. Raises InputError if writing fails, in the block or here; the partial file is then removed.
    """
    partial = partial_path(path)
    with writing(path):
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(path.parent, path.name)
            yield partial
            synced(partial)
            partial.replace(path)
            partial.unlink(missing_ok=True)  # rename does nothing if both are links to one file
            synced(path.parent)
        except BaseException:
            with suppress(OSError):
                partial.unlink(missing_ok=True)
            raise


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Raise an OSError of the block as InputError: `path` cannot be written."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from None


def not_written(path: Path, error: Exception) -> InputError:
    """The InputError for a file or folder that could not be written, from an OSError or a library's exception."""
    reason = " ".join(str(getattr(error, "strerror", None) or error or type(error).__name__).split())
    return InputError(f"{path} cannot be written ({reason}); expected a place that can, with room")


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file atomically, as `growing`. Raises InputError if that fails."""
    with growing(path) as partial:
        partial.write_bytes(data)


def write_json(path: Path, content: Any) -> None:
    """Write a JSON file atomically, as `write_bytes`."""
    write_bytes(path, json_bytes(content))


def json_bytes(content: Any) -> bytes:
    """The bytes that `write_json` writes."""
    return (json.dumps(content, indent=1, allow_nan=False) + "\n").encode()


def is_plain(value: Any, depth: int) -> bool:
    """Whether parsed JSON is nested at most `depth` levels deep and its numbers are finite."""
    if isinstance(value, dict | list):
        inner = value.values() if isinstance(value, dict) else value
        return depth > 0 and all(is_plain(each, depth - 1) for each in inner)
    return not isinstance(value, float) or math.isfinite(value)


def synced(path: Path) -> None:
    """Flush a file or a folder to disk (fsync)."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_leftovers(folder: Path, name: str | None = None) -> None:
    """Remove partial files (`partial_path`) of dead processes from a folder: all of them, or those of one name.

    Files of living processes on this machine stay; no other machine may be writing to the folder.
    """
    pattern = re.compile(rf"\.{'.+' if name is None else re.escape(name)}\.(\d{{1,9}})\.partial", re.DOTALL)
    for path in folder.glob(".*") if folder.is_dir() and not folder.is_symlink() else ():
        match = pattern.fullmatch(path.name)
        if not match or (int(match[1]) != os.getpid() and is_alive(int(match[1]))):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            with suppress(OSError):
                path.unlink()


def free_name(path: Path) -> Path:
    """An unused name in a file's folder, for renaming it out of the way."""
    names = (f"{path.name}.set-aside{f'-{number}' if number > 1 else ''}" for number in count(1))
    return next(found for name in names if not os.path.lexists(found := path.with_name(name)))


def set_aside(path: Path) -> Path:
    """Rename a file to its `free_name` and return that. Raises InputError if it fails."""
    other = free_name(path)
    with writing(other):
        path.rename(other)
    return other


def is_alive(pid: int) -> bool:
    """Whether a process with this id runs on this machine."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return pid > 0
