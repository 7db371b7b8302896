"""The command `timecycle compare`. Does not import torch."""

import argparse
from pathlib import Path

from timecycle.errors import InputError
from timecycle.evaluation.comparison.compare import compare
from timecycle.evaluation.comparison.paper import comma_separated, latex, markdown
from timecycle.manifest import OwnFile
from timecycle.progress import say

DESCRIPTION = (
    "Compare results of timecycle evaluate object by object: differences with 95 % intervals, and where they are "
    "largest. The first run is the baseline. Nothing is written without -o."
)
EXAMPLES = """
timecycle compare out/baseline out/mine -o compare.html
timecycle compare out/baseline out/mine out/other --latex
"""
PAPER = {
    "latex": (latex, "print a table for a paper instead: LaTeX, with booktabs"),
    "markdown": (markdown, "the same in Markdown"),
    "csv": (comma_separated, "the same as CSV"),
}


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.usage = f"{parser.prog} RUN RUN [RUN ...] [options]"
    parser.add_argument("runs", type=Path, nargs="+", metavar="RUN", help="results folders, the baseline first")
    parser.add_argument("--names", nargs="+", metavar="NAME", help="of the runs (default: their folders')")
    parser.add_argument("--sequences", nargs="+", metavar="NAME", help="only these, which all runs must have")
    parser.add_argument(
        "--across",
        nargs="+",
        metavar="FIELD",
        default=[],
        help="fields of the protocol that may differ, such as k; 'protocol': all",
    )
    page = parser.add_argument_group("a page to look at")
    page.add_argument("-o", "--output", type=Path, metavar="FILE", help="write it to this .html file")
    page.add_argument("--single-file", action="store_true", help="with the videos in it, not links to them")
    table = parser.add_argument_group("a table for a paper").add_mutually_exclusive_group()
    for name, (_, text) in PAPER.items():
        table.add_argument(f"--{name}", dest="paper", action="store_const", const=name, help=text)


def run(arguments: argparse.Namespace) -> None:
    """Compare the runs, print the tables, and write the page if asked to."""
    output = arguments.output
    if output is None and arguments.single_file:
        raise InputError("--single-file is given without -o; expected the page's name, such as -o compare.html")
    if output is not None and (output.suffix.lower() not in (".html", ".htm") or output.is_dir()):
        raise InputError(f"-o is {output}; expected the name of an .html file")
    written = None if output is None else OwnFile(output)
    if written:
        written.check()
    comparison = compare(arguments.runs, arguments.names, arguments.sequences, arguments.across)
    if arguments.paper:
        print(PAPER[arguments.paper][0](comparison.names, comparison.scores))
    else:
        print(comparison)
    if written:
        from timecycle.evaluation.comparison.page import page  # which takes a while

        written.replace(page(comparison, output.parent, arguments.single_file))
        say(f"page: {output.resolve().as_uri()}")
