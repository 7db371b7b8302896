"""The one exception for bad input: a single sentence that names the file or argument and what was expected."""

import sys
import traceback
from collections.abc import Callable


class InputError(ValueError):
    """Bad input from the user. The message is one sentence, fit to be printed without a traceback."""


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
