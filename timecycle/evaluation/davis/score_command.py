"""The command `timecycle score`. Does not import torch."""

import argparse
from pathlib import Path

from timecycle.data.masks import add_mask_options, masks_of
from timecycle.errors import InputError
from timecycle.evaluation.davis.causes import causes_of, counted, scores_json
from timecycle.evaluation.davis.scores import score_results
from timecycle.files import json_bytes
from timecycle.manifest import OwnFile

DESCRIPTION = (
    "Score a folder of masks, whatever wrote them, by the measures of DAVIS-2017: region similarity J and contour "
    "accuracy F, as the official code computes them."
)
EXAMPLES = """
timecycle score --davis DAVIS --results out/davis
timecycle score --davis DAVIS --results MASKS --set train --json scores.json
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS folder (Annotations/480p, ImageSets)")
    parser.add_argument("--results", type=Path, required=True, help="folder of results: <sequence>/<frame>.png")
    parser.add_argument("--set", default="val", help="name of the list in ImageSets (default: %(default)s)")
    parser.add_argument("--year", default="2017", help="folder in ImageSets (default: %(default)s)")
    parser.add_argument("--json", type=Path, help="also write all scores to this file")
    parser.add_argument("--workers", type=int, help="processes; 0 or 1: only this one (default: one per CPU core)")
    add_mask_options(parser)


def run(arguments: argparse.Namespace) -> None:
    """Score the results, and print the table."""
    if arguments.json is not None and arguments.json.is_dir():
        raise InputError(f"--json {arguments.json} is a folder; expected the name of a file")
    written = None if arguments.json is None else OwnFile(arguments.json)
    if written:
        written.check()
    masks = masks_of(arguments)
    scores = score_results(arguments.davis, arguments.results, arguments.set, arguments.year, arguments.workers, masks)
    print(scores.report())
    if line := counted(causes_of(scores)):
        print(line)
    if written:
        written.replace(json_bytes(scores_json(scores)))
