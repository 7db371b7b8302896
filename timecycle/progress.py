"""What programs tell while they work: progress, notes, warnings; and what --quiet, --verbose and --debug mean.

The functions and `Progress` may be used anywhere. Outside a program, as from a notebook, notes are printed and
progress is shown on a terminal only.
"""

import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from types import TracebackType
from typing import Any, Self, TextIO

from timecycle.errors import InputError

OUTPUT_OPTIONS = """\
options of every command, anywhere on the line:
  --quiet       print results, warnings and errors only
  --verbose     also print versions, seconds per stage and peak memory
  --debug       print the traceback of an error
"""
LINE_EVERY = 30.0
"""Seconds between lines of progress where there is no terminal."""


@dataclass(frozen=True)
class Output:
    """How much is printed."""

    quiet: bool = False
    """Results, warnings and errors only."""
    verbose: bool = False
    """Details too."""
    lines: bool = False
    """Print progress as lines where there is no terminal: in programs, whose output may go to a file."""


_output = Output()


def take_output_options(words: Sequence[str]) -> tuple[list[str], Output]:
    """Split a command line into the words without --quiet, --verbose and --debug, and what those ask for.

    --debug is read by `timecycle.errors.run_command_line`. Raises InputError for both --quiet and --verbose.
    """
    end = words.index("--") if "--" in words else len(words)
    given = {"--quiet", "--verbose", "--debug"}.intersection(words[:end])
    if {"--quiet", "--verbose"} <= given:
        raise InputError("--quiet and --verbose are both given; expected one of them")
    rest = [word for word in words[:end] if word not in given]
    return rest + list(words[end:]), Output("--quiet" in given, "--verbose" in given, lines=True)


@contextmanager
def printing(output: Output) -> Iterator[None]:
    """Print as much as `output` says inside the block."""
    global _output
    earlier, _output = _output, output
    try:
        yield
    finally:
        _output = earlier


def say(message: str) -> None:
    """Print a line unless --quiet is given; a warning, which begins with "warning: ", always and on stderr."""
    if message.startswith("warning: "):
        _print(message, sys.stderr)
    elif not _output.quiet:
        _print(message, sys.stdout)


def say_detail(message: str) -> None:
    """Print a line if --verbose is given."""
    if _output.verbose:
        _print(message, sys.stdout)


def _print(message: str, file: TextIO) -> None:
    if "tqdm" not in sys.modules:  # then there is no bar, which would have to be moved
        print(message, file=file, flush=True)
        return
    from tqdm import tqdm

    with tqdm.external_write_mode(file=file):
        print(message, file=file, flush=True)


class Progress:
    """Progress through a piece of work, on stderr: a bar on a terminal, else, in programs, a line every half minute.

    The first line comes at once. --quiet shows neither. A context manager.

    Args:
        total: number of units; None if unknown.
        unit: name of one, in the singular.
        description: what is worked on; `describe` changes it.
        initial: units finished earlier.
        delay: seconds before anything is shown.
        shown: False shows nothing.
    """

    def __init__(
        self,
        total: int | None,
        unit: str = "frame",
        description: str = "",
        *,
        initial: int = 0,
        delay: float = 0.0,
        shown: bool = True,
    ) -> None:
        self._total, self._unit, self._description = total, unit, description
        self._done = self._initial = initial
        self._start = time.monotonic()
        self._bar: Any = None
        shown = shown and total != 0 and not _output.quiet
        terminal = sys.stderr.isatty()
        if shown and terminal:
            from tqdm import tqdm

            self._bar = tqdm(total=total, unit=unit, desc=description or None, initial=initial, delay=delay)
        self._next_line = self._start + delay if shown and not terminal and _output.lines else float("inf")
        self.update(0)

    def update(self, units: int = 1) -> None:
        """Count finished units."""
        self._done += units
        if self._bar is not None:
            self._bar.update(units)
        now = time.monotonic()
        if now >= self._next_line:
            self._next_line = now + LINE_EVERY
            _print(self.line(now - self._start), sys.stderr)

    def describe(self, description: str) -> None:
        """Name what is worked on now."""
        self._description = description
        if self._bar is not None:
            self._bar.set_description(description)

    def close(self) -> None:
        """End a bar."""
        if self._bar is not None:
            self._bar.close()

    def line(self, seconds: float) -> str:
        """The state after so many seconds, as `camel: 120 of 900 frames, 13.3 %, 2.9 frames/s, about 4 min left`."""
        done, total, units = self._done, self._total, f"{self._unit}s"
        parts = [f"{done} {self._unit if done == 1 else units}" if total is None else f"{done} of {total} {units}"]
        if total and done:
            parts.append(f"{100 * done / total:.1f} %")
        rate = (done - self._initial) / seconds if seconds > 0 else 0.0
        if rate:
            parts.append(f"{rate:.1f} {units}/s" if rate >= 1 else f"{1 / rate:.1f} s/{self._unit}")
            if total:
                parts.append(f"about {duration((total - done) / rate)} left")
        return f"{self._description}: {', '.join(parts)}" if self._description else ", ".join(parts)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def duration(seconds: float) -> str:
    """A time in words of suitable precision: 40 s, 4 min, 3 h 20 min, 2 days 3 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    if minutes < 90:
        return f"{minutes} min"
    days, rest = divmod(timedelta(minutes=minutes), timedelta(days=1))
    hours, minutes = rest.seconds // 3600, rest.seconds % 3600 // 60
    if days:
        return f"{days} day{'s' if days > 1 else ''} {hours} h"
    return f"{hours} h {minutes} min" if minutes else f"{hours} h"
