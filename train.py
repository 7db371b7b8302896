"""Training of TimeCycle's features. Not there yet: this says so, and what works meanwhile."""

from timecycle.errors import InputError, run_command_line


def main() -> None:
    """Refuse, in one sentence."""
    raise InputError(
        "training is not part of this version; what works is evaluation: python test_davis.py --cropSize 480"
    )


if __name__ == "__main__":
    run_command_line(main)
