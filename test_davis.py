"""`timecycle evaluate` in a checkout, without installing: see python test_davis.py --help."""

from timecycle.cli import program, start

main = program("evaluate", "python test_davis.py")

if __name__ == "__main__":
    start(main)
