"""`python -m timecycle.checkpoint`: see timecycle.checkpoints.networks."""

from timecycle.checkpoints.networks import main
from timecycle.errors import run_command_line

if __name__ == "__main__":
    run_command_line(main)
