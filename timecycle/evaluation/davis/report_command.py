"""The command `timecycle report`. Does not import torch."""

import argparse
from pathlib import Path

from timecycle.errors import InputError
from timecycle.evaluation.davis.report import write_page
from timecycle.evaluation.davis.report_frames import kept_inspections
from timecycle.evaluation.davis.run import read_run
from timecycle.locks import owned
from timecycle.manifest import NOTES, OwnFile
from timecycle.progress import say

DESCRIPTION = (
    "Write the page of an evaluation again: scores, J and F over time, causes, the worst frames and the videos, in one "
    "HTML file that opens from disk. Every evaluation ends with one; this is for older results, and for pages to send."
)
EXAMPLES = """
timecycle report out/davis
timecycle report out/davis -o davis.html --single-file
"""
MEGABYTE = 1e6


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="results folder of timecycle evaluate or evaluate_davis")
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
    found = read_run(arguments.run)
    sequences = found.sequences()
    with owned(found.folder, NOTES):
        inspected = kept_inspections(found.folder)
        page = write_page(found, sequences, file, single_file=arguments.single_file, inspected=inspected)
    say(f"page: {page.resolve().as_uri()} ({page.stat().st_size / MEGABYTE:.1f} MB)")
