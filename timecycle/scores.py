"""`python -m timecycle.scores`: see timecycle.evaluation.davis.scores. Knows no torch."""

from timecycle.errors import run_command_line
from timecycle.evaluation.davis.scores import main

if __name__ == "__main__":
    run_command_line(main)
