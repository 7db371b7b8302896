"""Bad input raises InputError, whose message is one sentence: what was given and what was expected."""

import io
import os
import sys
import traceback
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """Bad input: an argument, a file or an option. All functions of this package raise it, and programs end with it.

    The message is one sentence: what was given, and after "; expected" what was expected. It can be printed without a
    traceback.
    """


def check_least(least: int, **numbers: int) -> None:
    """Raise InputError for the first of the numbers, given by name, that is below `least`."""
    for name, value in numbers.items():
        if value < least:
            raise InputError(f"{name} is {value}; expected at least {least}")


LISTED = 5  # names that a sentence lists
_MOST_SAID = 100  # characters of a file's text that a sentence quotes


def listing(names: Iterable[object]) -> str:
    """The first few names, separated by commas, and the number of the others."""
    words = [str(name) for name in names]
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more


def said(value: object) -> str:
    """A value from a file or a command line for use in a sentence: short, on one line, printable."""
    try:
        text = str(value)
    except (ValueError, RecursionError):  # a number of thousands of digits; deeply nested lists
        text = type(value).__name__
    return printable(text) if len(text) <= _MOST_SAID else f"{printable(text[:_MOST_SAID])}..."


def printable(text: str) -> str:
    """A text with line breaks, undecodable bytes and other unprintable characters escaped."""
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text)


def run_command_line(main: Callable[[], None]) -> None:
    """Run `main` and exit: 0 when it returns, 2 with one sentence on stderr for bad input, 130 for Ctrl-C.

    Also 2 if a file (standard output included) cannot be read or written, or memory runs out; 141, without a message,
    if the reader of the output has exited. With --debug on the command line the traceback is printed first.
    """
    debug = "--debug" in sys.argv
    if isinstance(sys.stdout, io.TextIOWrapper):  # file names may hold undecodable bytes
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
    """The error as one sentence."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError):
        name = "the output, or a file," if error.filename is None else error.filename
        return (
            f"{name} cannot be read or written ({error.strerror or text}); expected an accessible path and free space"
        )
    if isinstance(error, MemoryError):
        return f"memory is used up{f' ({text})' if text else ''}; expected more, or less work at a time"
    return text


def _discard_output() -> None:
    """Flush the output, or drop it if it cannot be written, so that flushing at exit does not fail."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
