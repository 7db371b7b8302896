"""What ends a run and is no error of the program, as one sentence: files, memory, processes that end."""

import re
from collections.abc import Iterator
from contextlib import contextmanager

import cv2

from timecycle import errors
from timecycle.errors import InputError

_WORKER = re.compile(r"DataLoader worker \(pid(?:\(s\))? [\d, ]+\) (.+)", re.DOTALL)
_MEMORY = re.compile(
    r"out of memory|not enough memory|insufficient memory|can't allocate|unable to (m?map|allocate)", re.IGNORECASE
)


def sentence(error: BaseException) -> str | None:
    """What happened, in one sentence; None for what is an error of the program."""
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
def in_sentences() -> Iterator[None]:
    """Raise what `sentence` knows as InputError, with the error as its cause; leave the rest as it is."""
    try:
        yield
    except InputError:
        raise
    except (OSError, MemoryError, RuntimeError, cv2.error) as error:
        if (said := sentence(error)) is None:
            raise
        raise InputError(said) from error
