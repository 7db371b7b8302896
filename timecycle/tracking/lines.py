"""Text files that grow line by line, and go on after an interruption. Does not import torch."""

from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from timecycle.errors import InputError
from timecycle.files import check_is_file, growing, writing


def kept_lines(path: Path, keep: Callable[[str], bool], header: str = "") -> TextIO:
    """Open a text file to append lines, after removing those that `keep` refuses, and an incomplete last one.

    header: the first line, which is always there. A missing file is created. Raises InputError if the file cannot be
    written, begins with another line, or holds one that `keep` raises ValueError, LookupError or TypeError for.
    """
    if path.exists():
        check_is_file(path, "a file that this program wrote")
    with growing(path) as partial, partial.open("w", encoding="utf-8", newline="\n") as kept:
        kept.write(header)
        if path.exists():
            try:
                with path.open(encoding="utf-8", newline="\n") as file:
                    if header and (first := file.readline()) != header and first:
                        raise ValueError
                    kept.writelines(line for line in file if line.endswith("\n") and keep(line))
            except (ValueError, LookupError, TypeError):
                raise InputError(
                    f"{path} was not written by this program, or is damaged; expected such a file, or none there"
                ) from None
    with writing(path):
        return path.open("a", encoding="utf-8", newline="\n")
