"""Command line of `inspect`: where the label of a pixel of an evaluation comes from."""

import argparse
import io
import re
from pathlib import Path

import numpy as np
from PIL import Image

from timecycle.data.images import jpeg_bytes
from timecycle.errors import InputError, said
from timecycle.evaluation.davis.explanations import QUALITY
from timecycle.evaluation.davis.inspection import Inspection, inspect_run
from timecycle.evaluation.davis.run import read_run
from timecycle.locks import owned
from timecycle.manifest import NOTES, OwnFile
from timecycle.progress import say

DESCRIPTION = (
    "Show where the label of one pixel of an evaluation comes from: the weight of every context frame, the positions "
    "that were kept and their labels, as a table and as one picture. The sequence is propagated again up to the frame."
)
EXAMPLES = """
timecycle inspect out/RUN           # the worst frame, where it is wrong
timecycle inspect out/RUN --sequence bmx-trees --frame 68 --at 170,233
"""
FOLDER = Path("out/inspect")
SUFFIXES = (".jpg", ".jpeg", ".png")


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("run", type=Path, metavar="RUN", help="results folder of timecycle evaluate")
    parser.add_argument("--sequence", metavar="NAME", help="the sequence (default: the one with the worst frame)")
    parser.add_argument("--frame", metavar="NAME", help="name of the frame, or its number from 0 (default: the worst)")
    parser.add_argument("--at", metavar="X,Y", help="the pixel (default: amid the largest wrong region)")
    parser.add_argument(
        "-o", "--output", type=Path, metavar="FILE", help=f"the picture, .jpg or .png (default: a file in {FOLDER})"
    )
    parser.add_argument(
        "--features",
        metavar="MODULE:CALLABLE",
        help="the callable, if the evaluation was made with one: code runs only if you name it",
    )
    parser.add_argument("--device", help="auto, cpu, cuda, cuda:1 ... (default: as in the run)")


def run(arguments: argparse.Namespace) -> None:
    """Inspect the pixel, print the table and write the picture."""
    at = None if arguments.at is None else _pixel(arguments.at)
    output: Path | None = arguments.output
    if output is not None and output.suffix.lower() not in SUFFIXES:
        raise InputError(f"--output is {said(output)}; expected a name that ends in {', '.join(SUFFIXES)}")
    if output is not None:
        OwnFile(output).check()
    found = inspect_run(
        read_run(arguments.run),
        arguments.sequence,
        arguments.frame,
        at,
        features=arguments.features,
        device=arguments.device,
    )
    place = output or FOLDER / f"{found.sequence}-{found.names[-1]}-{found.at[0]}-{found.at[1]}.jpg"
    write_picture(found, place)
    print(found.table())
    say(f"picture: {place}")


def write_picture(found: Inspection, path: Path) -> None:
    """Write the picture as JPEG or PNG. Raises InputError if that fails or would replace a file that is not ours."""
    with owned(path.parent, NOTES):
        OwnFile(path).replace(picture_bytes(found.picture, path.suffix))


def picture_bytes(picture: np.ndarray, suffix: str = ".jpg") -> bytes:
    """A picture, uint8 RGB, as JPEG or PNG."""
    if suffix.lower() != ".png":
        return jpeg_bytes(picture, QUALITY)
    buffer = io.BytesIO()
    Image.fromarray(picture).save(buffer, "PNG", optimize=True)
    return buffer.getvalue()


def _pixel(text: str) -> tuple[int, int]:
    """X and y of a text x,y. Raises InputError for anything else."""
    if not re.fullmatch(r"\d{1,6},\d{1,6}", text, re.ASCII):
        raise InputError(f"--at is {said(text)}; expected x,y in pixels of the frame, such as 120,80")
    x, _, y = text.partition(",")
    return int(x), int(y)
