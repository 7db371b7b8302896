"""`python -m timecycle.checkpoint`, and its functions under their names of version 0.1."""

from timecycle.checkpoints.networks import LAYOUTS, convert, load_encoder, load_features, main, save_encoder
from timecycle.checkpoints.state_dicts import read_state_dict
from timecycle.errors import run_command_line

__all__ = ["LAYOUTS", "convert", "load_encoder", "load_features", "read_state_dict", "save_encoder"]

if __name__ == "__main__":
    run_command_line(main)
