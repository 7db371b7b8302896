"""`python -m timecycle`, the same as the command `timecycle`."""

from timecycle.cli import main

if __name__ == "__main__":
    main()
