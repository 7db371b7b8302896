"""`timecycle train` in a checkout, without installing, and for torchrun: see python train.py --help."""

from timecycle.cli import program, start

main = program("train", "train.py")

if __name__ == "__main__":
    start(main)
