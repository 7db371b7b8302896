"""The command `timecycle report`, for the folders of evaluations and of training runs."""

import argparse
from pathlib import Path

from timecycle.errors import InputError
from timecycle.manifest import OwnFile
from timecycle.progress import say

DESCRIPTION = (
    "Write the page of an evaluation again: scores, J and F over time, causes, the worst frames and the videos, in one "
    "HTML file that opens from disk. Or that of a training run: curves and pictures. Both make their page themselves; "
    "this is for results of older versions, and for pages to send."
)
EXAMPLES = """
timecycle report out/davis
timecycle report out/davis -o davis.html --single-file
"""
MEGABYTE = 1e6


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of an evaluation's results, or of a training run")
    parser.add_argument(
        "-o",
        "--output",
        type=Path,
        metavar="FILE",
        help="page with embedded pictures (default: RUN/report.html, with pictures beside it)",
    )
    parser.add_argument(
        "--single-file", action="store_true", help="embed the videos too, so that the page needs no other file"
    )
    parser.add_argument(
        "--inspect",
        type=int,
        metavar="N",
        help="of an evaluation: add pictures of where the labels of the N worst frames come from, of those "
        "that it shows (default: the pictures that it has)",
    )


def run(arguments: argparse.Namespace) -> None:
    """Write the page, and print its address and size."""
    output: Path | None = arguments.output
    if output is not None:
        if output.is_dir():
            raise InputError(f"--output {output} is a folder; expected the name of a file")
        OwnFile(output).check()
    if (arguments.run / "settings.json").is_file() and not (arguments.run / "results.json").is_file():
        if arguments.inspect is not None:
            raise InputError(f"--inspect is given and {arguments.run} is a training run; expected an evaluation")
        page = _of_training(arguments.run, output, arguments.single_file)
    else:
        if arguments.inspect is not None and arguments.inspect < 0:
            raise InputError(f"--inspect is {arguments.inspect}; expected a number of frames, 0 or more")
        page = _of_evaluation(arguments.run, output, arguments.single_file, arguments.inspect)
    say(f"page: {page.resolve().as_uri()} ({page.stat().st_size / MEGABYTE:.1f} MB)")


def _of_training(folder: Path, output: Path | None, single_file: bool) -> Path:
    from timecycle.training.report import rewrite_report  # imports torch

    return rewrite_report(folder, output, single_file)


def _of_evaluation(folder: Path, output: Path | None, single_file: bool, inspect: int | None) -> Path:
    from timecycle.evaluation.davis.report import rewrite_report

    return rewrite_report(folder, output, single_file, inspect)
