"""Bad input: one exception, whose message is a single sentence that names what came and what was expected."""

import sys
import traceback
from collections.abc import Callable, Iterable


class InputError(ValueError):
    """Bad input from the user. The message is one sentence, fit to be printed without a traceback."""


LISTED = 5
"""How many names a sentence lists."""


def listing(names: Iterable[object]) -> str:
    """Names with commas between them, the first few and how many more there are."""
    words = [str(name) for name in names]
    more = f" and {len(words) - LISTED} more" if len(words) > LISTED else ""
    return ", ".join(words[:LISTED]) + more


def run_command_line(main: Callable[[], None]) -> None:
    """Run `main` and exit: 0 when it returns, 2 with one sentence on stderr for bad input, 130 for Ctrl-C.

    With --debug on the command line the error's traceback and those of its causes come first.
    """
    debug = "--debug" in sys.argv
    try:
        main()
    except InputError as error:
        sys.stdout.flush()
        if debug:
            traceback.print_exception(error)
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        print("interrupted; what was finished is kept", file=sys.stderr)
        sys.exit(130)
