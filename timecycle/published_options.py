"""Options of the published programs that have no effect here: accepted, and listed on the console."""

import argparse
import math
from collections.abc import Iterable

from timecycle.errors import InputError
from timecycle.progress import say

# Options with all their names: those without effect in both published programs ...
_OF_BOTH = "-d/--data -e/--evaluate --classNum --seperate2d"
# ... and those of one program without effect, or replaced by other options here.
EVALUATION = (
    f"{_OF_BOTH} -j/--workers --lr/--learning-rate --drop/--dropout --schedule --gamma --momentum --weight-decay/--wd "
    "-c/--checkpoint --manualSeed --pretrained --gpu-id --batchSize --T --gridSize --lamda --pretrained_imagenet "
    "--frame_gap --cropSize2 --temporal_out"
)
TRAINING = f"{_OF_BOTH} --T --gridSize --hist --pretrained_imagenet"
# Options that did affect training, with the only value supported here.
FIXED: dict[str, tuple[float, str]] = {
    "--T": (512**-0.5, "the temperature is 512 ** -0.5"),
    "--gridSize": (9, "motion is summed over 9 x 9 cells"),
    "--hist": (1, "one query is propagated"),
    "--pretrained_imagenet": (0, "no such weights are shipped; --pretrained takes a file of them"),
}
_PREFIX = "without effect "


def add_without_effect(parser: argparse.ArgumentParser, options: str) -> None:
    """Add options without effect, `EVALUATION` or `TRAINING`, to a parser, hidden from its help."""
    for names in options.split():
        parser.add_argument(
            *names.split("/"),
            nargs="*",
            default=argparse.SUPPRESS,
            dest=_PREFIX + names.split("/")[-1],
            help=argparse.SUPPRESS,
        )


def take_without_effect(arguments: argparse.Namespace) -> dict[str, str]:
    """Remove these options from a parsed command line; returns the given ones, name to value."""
    given = [name for name in vars(arguments) if name.startswith(_PREFIX)]
    return {name.removeprefix(_PREFIX): " ".join(vars(arguments).pop(name)) for name in given}


def check_fixed(given: dict[str, str]) -> list[str]:
    """The given names without those in `FIXED`. Raises InputError for an unsupported value of one of these."""
    for name, (value, why) in FIXED.items():
        if name in given and _number(given[name]) != value:
            raise InputError(f"{name} is {given[name]}; expected it left out, as {why}")
    return [name for name in given if name not in FIXED]


def say_without_effect(names: Iterable[str]) -> None:
    """Print the given options without effect, if there are any."""
    if listed := ", ".join(names):
        say(f"accepted without effect, as they do not change the result here: {listed}")


def _number(text: str) -> float:
    """A number of a published program's command line, where it may be a truth value; NaN for anything else."""
    words = {"false": 0.0, "no": 0.0, "f": 0.0, "n": 0.0, "true": 1.0, "yes": 1.0, "t": 1.0, "y": 1.0, "": 1.0}
    try:
        return words[text.lower()] if text.lower() in words else float(text)
    except ValueError:
        return math.nan
