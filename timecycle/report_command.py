"""`timecycle report`: the page of an evaluation, or of a training run. Imports torch for the latter only."""

import argparse
from pathlib import Path

from timecycle.errors import InputError
from timecycle.evaluation.davis.report import write_page
from timecycle.evaluation.davis.report_frames import kept_inspections
from timecycle.evaluation.davis.results import RESULTS
from timecycle.evaluation.davis.run import read_run
from timecycle.locks import owned
from timecycle.manifest import NOTES, OwnFile
from timecycle.progress import say

DESCRIPTION = (
    "Write the page of an evaluation again: scores, J and F over time, causes, the worst frames and the videos; or "
    "that of a training run: curves, validations, pictures. It is one HTML file that opens from disk. Every evaluation "
    "and every run has one; this is for older results, and for pages to send."
)
EXAMPLES = """
timecycle report out/davis
timecycle report out/run -o run.html        # a training run, as one file
"""
MEGABYTE = 1e6
SETTINGS = "settings.json"  # of a training run


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="folder of timecycle evaluate, evaluate_davis or train")
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


def run(arguments: argparse.Namespace) -> None:
    """Write the page, and print its address and size."""
    file = arguments.output
    if file is not None:
        if file.is_dir():
            raise InputError(f"--output {file} is a folder; expected the name of a file")
        OwnFile(file).check()
    of_training = (arguments.run / SETTINGS).exists() and not (arguments.run / RESULTS).exists()
    page = (_of_training if of_training else _of_evaluation)(arguments.run, file, arguments.single_file)
    say(f"page: {page.resolve().as_uri()} ({page.stat().st_size / MEGABYTE:.1f} MB)")


def _of_evaluation(folder: Path, file: Path | None, single_file: bool) -> Path:
    found = read_run(folder)
    sequences = found.sequences()
    with owned(found.folder, NOTES):
        inspected = kept_inspections(found.folder)
        return write_page(found, sequences, file, single_file=single_file, inspected=inspected)


def _of_training(folder: Path, file: Path | None, single_file: bool) -> Path:
    from timecycle.training.report import rewrite_report

    return rewrite_report(folder, file, single_file)
