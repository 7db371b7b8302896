"""The command `timecycle train`, which is train.py: an option for each field of `timecycle.training.settings`."""

import argparse
import signal
from collections.abc import Sequence
from typing import Any, Literal, get_args, get_origin

from timecycle.published_options import TRAINING, add_without_effect, check_fixed, take_without_effect
from timecycle.training.loop import train_as_told
from timecycle.training.settings import (
    OLD_OPTIONS,
    OPTIONS,
    TYPES,
    applies,
    defaults,
    flag,
    flags,
    settings_class,
    usual_objective,
)

DESCRIPTION = "Learn correspondence from unlabeled video."
EXAMPLES = """
timecycle train                     # synthetic video, a minute of CPU
timecycle train --filelist LIST -c out/run --resume auto
"""


def run(arguments: argparse.Namespace) -> None:
    """Train. Raises InputError for values of the published program that are not offered, and as the loop does."""
    # torchrun ends ranks by SIGTERM, which then should not print that they were interrupted; during the steps
    # `StopRequest` takes it.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    unused = check_fixed(take_without_effect(arguments))
    train_as_told(vars(arguments), unused)


def read_command_line(words: Sequence[str]) -> tuple[dict[str, Any], list[str]]:
    """The options that a command line gives, by field, and the names of those that are accepted without effect.

    Exits with status 2 on unknown options. Raises InputError for values of the published program that are not offered.
    """
    parser = argparse.ArgumentParser(prog="train.py")
    add_options(parser, words)
    arguments = parser.parse_args(words)
    ignored = check_fixed(take_without_effect(arguments))
    return vars(arguments), ignored


def add_options(parser: argparse.ArgumentParser, words: Sequence[str]) -> None:
    """Add the options of a command line, with the defaults of the objective that it names.

    Those that are not given are left out of the parsed arguments, so that a resumed run keeps its own settings.
    """
    chosen = argparse.ArgumentParser(add_help=False, argument_default=argparse.SUPPRESS, allow_abbrev=False)
    for name in ("objective", "walk_over", "optimizer", "filelist", "videos"):
        chosen.add_argument(*flags(name), dest=name, nargs="?")
    given = vars(chosen.parse_known_args(words)[0])
    for name in ("objective", "walk_over", "optimizer"):
        if given.get(name) not in get_args(TYPES[name]):  # the full parser reports it
            given.pop(name, None)
    values = defaults(given)
    data = "data given" if given.get("filelist") or given.get("videos") else "no data given (synthetic video, a demo)"
    parser.usage = f"{parser.prog} [options]"
    parser.argument_default, parser.allow_abbrev = argparse.SUPPRESS, False
    parser.description = (
        f"{DESCRIPTION} The options and defaults shown are those of {settings_class(values).command()} with {data}; "
        "give --objective, --walk-over, --optimizer, --filelist or --videos beside --help to see others. A resumed "
        "run keeps its own settings."
    )
    optimizer = given.get("optimizer", values["optimizer"])
    values["objective"] = usual_objective(given)
    for name in OPTIONS:
        shown = name in values and applies(name, optimizer)
        parser.add_argument(*flags(name), dest=name, **_argument(name, values.get(name), shown))
    for name in OLD_OPTIONS:
        parser.add_argument(flag(name), type=int, help=argparse.SUPPRESS)
    add_without_effect(parser, TRAINING)


def _argument(name: str, default: Any, shown: bool) -> dict[str, Any]:
    """The arguments of `add_argument` for a field."""
    kind, metadata = TYPES[name], OPTIONS[name].metadata
    if kind is bool:
        default = flag(name) if default else f"--no-{flag(name).removeprefix('--')}"
    about = f"{metadata['help']} (default: {metadata['none'] if default is None else default})"
    if not shown:
        about = argparse.SUPPRESS
    if kind is bool:
        return {"action": argparse.BooleanOptionalAction, "help": about}
    if get_origin(kind) is Literal:
        return {"choices": get_args(kind), "help": about}
    plain = next(part for part in (*get_args(kind), kind) if part is not type(None))
    return {"type": plain, "help": about, "metavar": plain.__name__.upper()}
