"""`python -m timecycle.checkpoint convert`, and its functions under their names from before 0.1.0."""

import sys

from timecycle.checkpoints.networks import LAYOUTS, convert, load_encoder, load_features, save_encoder
from timecycle.checkpoints.state_dicts import read_state_dict
from timecycle.cli import run_subcommand, start

__all__ = ["LAYOUTS", "convert", "load_encoder", "load_features", "read_state_dict", "save_encoder"]


def main() -> None:
    """Run the command line, whose first word is convert."""
    words = sys.argv[1:]
    run_subcommand(
        "convert", words[1:] if words[:1] == ["convert"] else words, "python -m timecycle.checkpoint convert"
    )


if __name__ == "__main__":
    start(main)
