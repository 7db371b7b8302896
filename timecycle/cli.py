"""The command `timecycle`: a table of subcommands, each a module that is imported only when it is chosen.

The module of a subcommand has

    DESCRIPTION: str                what it does
    EXAMPLES: str                   two command lines as typed, which begin with `timecycle NAME`
    add_options(parser)             adds its options; add_options(parser, words) if they depend on the command line
    run(arguments) -> None          the work; raises InputError for bad input

--quiet, --verbose and --debug are taken from the command line before the module sees it (`timecycle.progress`).
"""

import argparse
import difflib
import importlib
import importlib.metadata
import platform
import shutil
import signal
import sys
import textwrap
import time
import warnings
from collections.abc import Callable, Sequence
from types import ModuleType
from typing import NamedTuple

from timecycle.errors import InputError, run_command_line, said
from timecycle.progress import OUTPUT_OPTIONS, printing, say_detail, take_output_options
from timecycle.provenance import host_memory_mb
from timecycle.version import __version__


class Subcommand(NamedTuple):
    """A row of the table."""

    module: str
    help: str
    """One line."""
    options_depend_on_words: bool = False
    """Whether add_options also takes the words of the command line."""


SUBCOMMANDS = {
    "track": Subcommand("timecycle.tracking.command", "carry masks, boxes or points through a video of yours"),
    "evaluate": Subcommand("timecycle.evaluation.davis.command", "evaluate features on DAVIS: masks, J and F"),
    "train": Subcommand("timecycle.training.command_line", "learn features from unlabeled video", True),
    "inspect": Subcommand(
        "timecycle.evaluation.davis.inspect_command", "show where the label of a pixel of an evaluation comes from"
    ),
    "report": Subcommand("timecycle.report", "write the page of an evaluation or of a training run again"),
    "score": Subcommand("timecycle.evaluation.davis.score_command", "score a folder of masks by J and F"),
    "compare": Subcommand("timecycle.evaluation.comparison.command", "compare results, object by object"),
    "prepare": Subcommand("timecycle.prepare", "turn videos into folders of frames, DAVIS into a list"),
    "convert": Subcommand("timecycle.checkpoints.command", "write a checkpoint's network as safetensors"),
    "doctor": Subcommand("timecycle.doctor", "say what is installed and built here, and test it"),
}
MOST_COLUMNS = 100
"""Of help texts; on narrower terminals they have fewer."""


def main() -> None:
    """The entry point; exits as `timecycle.errors.run_command_line` says."""
    start(lambda: run(sys.argv[1:]))


def start(program: Callable[[], None]) -> None:
    """Run a program and exit. SIGTERM ends it like Ctrl-C, so that unfinished files are removed."""
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    warnings.formatwarning = _formatted
    run_command_line(program)


def program(name: str, called: str) -> Callable[[], None]:
    """A function that runs one subcommand with the words of sys.argv, for the script or module `called`."""
    return lambda: run_subcommand(name, sys.argv[1:], called)


def run(words: Sequence[str]) -> None:
    """Run the command line `timecycle WORDS`. Raises InputError for an unknown subcommand."""
    place = next((index for index, word in enumerate(words) if not word.startswith("-")), len(words))
    own, _ = take_output_options(words[:place])  # what is left of them is for timecycle itself
    _parser().parse_args(own)  # which exits for --help, --version and unknown options
    if place == len(words):
        _parser().print_help()
        return
    name = words[place]
    if name not in SUBCOMMANDS:
        near = difflib.get_close_matches(name, SUBCOMMANDS, 1, cutoff=0)
        raise InputError(
            f"timecycle has no command {said(name)!r}; expected {near[0]}, or another that timecycle --help lists"
        )
    run_subcommand(name, [*words[:place], *words[place + 1 :]])


def run_subcommand(name: str, words: Sequence[str], called: str | None = None) -> None:
    """Run a subcommand; `called` is what its help says in place of `timecycle NAME`. Raises as its module does."""
    words, output = take_output_options(words)
    module = _imported(name)
    arguments = subcommand_parser(name, module, words, called).parse_args(words)
    begin = time.perf_counter()
    with printing(output):
        say_detail(f"timecycle {__version__}, Python {platform.python_version()}, {_versions()}")
        module.run(arguments)
        say_detail(f"{time.perf_counter() - begin:.1f} s, peak memory {host_memory_mb():.0f} MB")


def subcommand_parser(
    name: str, module: ModuleType, words: Sequence[str] = (), called: str | None = None
) -> argparse.ArgumentParser:
    """The parser of a subcommand, whose help ends in the examples."""
    prog = called or f"timecycle {name}"
    examples = textwrap.indent(module.EXAMPLES.strip().replace(f"timecycle {name}", prog), "  ")
    parser = argparse.ArgumentParser(
        prog=prog,
        description=module.DESCRIPTION,
        epilog=f"{OUTPUT_OPTIONS}\nexamples:\n{examples}",
        formatter_class=_Formatter,
    )
    if SUBCOMMANDS[name].options_depend_on_words:
        module.add_options(parser, words)
    else:
        module.add_options(parser)
    parser.description = textwrap.fill(parser.description or "", _columns())
    return parser


def _imported(name: str) -> ModuleType:
    try:
        return importlib.import_module(SUBCOMMANDS[name].module)
    except ImportError as error:
        raise InputError(
            f"timecycle {name} cannot be loaded ({error}); expected a complete installation (see timecycle doctor)"
        ) from error


def _parser() -> argparse.ArgumentParser:
    commands = "".join(f"  {name:10s}{command.help}\n" for name, command in SUBCOMMANDS.items())
    parser = argparse.ArgumentParser(
        prog="timecycle",
        usage="timecycle [--version] COMMAND [options]",
        description=f"Label propagation through video, and features for it.\n\ncommands:\n{commands}\n"
        "timecycle COMMAND --help shows the options of a command and two examples.",
        epilog=OUTPUT_OPTIONS,
        formatter_class=_Formatter,
        add_help=False,  # its two lines would not fit a screen
    )
    parser.add_argument("-h", "--help", action="help", help=argparse.SUPPRESS)
    parser.add_argument("--version", action="version", version=f"timecycle {__version__}", help=argparse.SUPPRESS)
    return parser


class _Formatter(argparse.RawDescriptionHelpFormatter):
    """Lines of the description and the epilog stay as they are."""

    def __init__(self, prog: str) -> None:
        super().__init__(prog, max_help_position=26, width=_columns())

    def _format_action_invocation(self, action: argparse.Action) -> str:
        """`-j, --workers INT`, as from Python 3.13 on, and not `-j INT, --workers INT`."""
        if not action.option_strings or action.nargs == 0:
            return super()._format_action_invocation(action)
        value = self._format_args(action, self._get_default_metavar_for_optional(action))
        return f"{', '.join(action.option_strings)} {value}"


def _columns() -> int:
    return min(shutil.get_terminal_size().columns - 2, MOST_COLUMNS)


def _formatted(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, line: str | None = None
) -> str:
    """Our own warnings as a line like those of `timecycle.progress.say`."""
    if filename == "timecycle":
        return f"warning: {message}\n"
    return _FORMAT_WARNING(message, category, filename, lineno, line)


_FORMAT_WARNING = warnings.formatwarning


def _versions() -> str:
    """Versions of the libraries that decide results, from their metadata, since importing torch takes seconds."""
    found = []
    for name in ("torch", "numpy", "opencv-python"):
        try:
            found.append(f"{name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            found.append(f"no {name}")
    return ", ".join(found)
