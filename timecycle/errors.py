"""Bad input: one exception, whose message is a single sentence that names what came and what was expected."""

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """Bad input from the user. The message is one sentence, fit to be printed without a traceback."""


LISTED = 5
"""How many names a sentence lists."""


_MOST_SAID = 100  # characters of a file's own text in a sentence


def listing(names: Iterable[object]) -> str:
    """Names with commas between them, the first few and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more


def said(value: object) -> str:
    """A value from a file or a command line as a sentence may hold it: short, on one line, printable."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; lists in lists
        text = type(value).__name__
    shown = "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:_MOST_SAID])
    return shown if len(text) <= _MOST_SAID else f"{shown}..."


def run_command_line(main: Callable[[], None]) -> None:
    """Run `main` and exit: 0 when it returns, 2 with one sentence on stderr for bad input, 130 for Ctrl-C.

    Also 2 where a file cannot be read or written, standard output among them, or memory is used up; 141, silently,
    where whoever read the output has ended. With --debug on the command line the error's traceback and those of its
    causes come first.
    """
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # names of files may hold bytes that are no text
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
        sys.stdout.flush()
    except BrokenPipeError:
        _discard_output()
        sys.exit(141)
    except (InputError, OSError, MemoryError) as error:
        if debug:
            traceback.print_exception(error)
        _discard_output()
        print(f"error: {sentence(error)}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)


def sentence(error: InputError | OSError | MemoryError) -> str:
    """What happened, in one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        name = "the output, or a file," if error.filename is None else error.filename
        return f"{name} cannot be read or written ({error.strerror or text}); expected it to be there, with room"
    if isinstance(error, MemoryError):
        return f"memory is used up{f' ({text})' if text else ''}; expected more, or less to be done at a time"
    return text


def _discard_output() -> None:
    """Flush what was printed, or drop it where it cannot be written, so that nothing is left to fail at the exit."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
