"""The command `timecycle convert`."""

import argparse
from pathlib import Path

from timecycle.checkpoints.networks import LAYOUTS, convert
from timecycle.progress import say

DESCRIPTION = (
    "Read a published checkpoint, without running code that it holds, and write its network twice: as safetensors for "
    "timecycle, and as a standard ResNet for other programs."
)
EXAMPLES = """
timecycle convert checkpoint_14.pth.tar --out weights
timecycle convert dino.pth --part teacher
"""


def add_options(parser: argparse.ArgumentParser) -> None:
    """Add the command's options."""
    parser.add_argument("checkpoint", type=Path, help="any that timecycle evaluate --resume takes")
    parser.add_argument("--out", type=Path, default=Path("."), help="folder for the two files (default: here)")
    add_network_options(parser)


def add_network_options(parser: argparse._ActionsContainer) -> None:
    """Add the options that say how to read the network of a checkpoint."""
    parser.add_argument(
        "--layout",
        choices=LAYOUTS,
        metavar="LAYOUT",
        help=f"of the weights' names: {', '.join(LAYOUTS)} (default: guessed)",
    )
    parser.add_argument("--part", help="network of a file that holds several: teacher, student, state_dict_ema, ...")


def run(arguments: argparse.Namespace) -> None:
    """Write the two files, and print their names."""
    ours, standard = convert(arguments.checkpoint, arguments.out, arguments.layout, arguments.part)
    say(f"{ours}: the network, for timecycle evaluate --resume")
    say(f"{standard}: a standard ResNet; for the same features its header says strides (layer3 stride 1) and padding")
