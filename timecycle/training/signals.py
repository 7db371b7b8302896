"""What ends a run early: SIGTERM and Ctrl-C as stop requests, and foreseeable failures as one sentence."""

import re
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any

import cv2

from timecycle import errors
from timecycle.errors import InputError

_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.+)", re.DOTALL)
_MEMORY = re.compile(
    r"out of memory|not enough memory|insufficient memory|can't allocate|unable to (m?map|allocate)", re.IGNORECASE
)


class StopRequest:
    """Within the context the first SIGTERM or SIGINT is noted in `name` instead of ending the program.

    The step is then finished and the run saved; a second signal ends it at once.
    """

    def __init__(self) -> None:
        self.name: str | None = None
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> "StopRequest":
        for number in (signal.SIGTERM, signal.SIGINT):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._restore()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        self._restore()

    def _restore(self) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)
        self._previous = {}


def failure_sentence(error: BaseException) -> str | None:
    """A foreseeable failure (bad input, files, memory, a dead worker) in one sentence; None for other errors."""
    text = " ".join(str(error).split())
    if isinstance(error, InputError | OSError):
        return errors.sentence(error)
    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError | cv2.error) and _MEMORY.search(text)):
        reason = text.rpartition("Error: ")[2].partition(". ")[0][:200] or "MemoryError"
        return f"memory is used up ({reason}); expected enough, or a smaller --batchSize or fewer --workers"
    if isinstance(error, RuntimeError) and (worker := _WORKER.match(text)):
        reason = worker[1].partition(". ")[0].rstrip(".")
        return (
            f"a process that prepares samples ended ({reason}); expected it to live: the system ends processes where "
            "memory is used up (fewer --workers, a smaller --cache-mb)"
        )
    return None


@contextmanager
def failures_as_input_errors() -> Iterator[None]:
    """Raise what `failure_sentence` knows as InputError, with the error as its cause; leave the rest as it is."""
    try:
        yield
    except InputError:
        raise
    except (OSError, MemoryError, RuntimeError, cv2.error) as error:
        if (sentence := failure_sentence(error)) is None:
            raise
        raise InputError(sentence) from error
