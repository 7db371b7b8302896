"""`python -m timecycle.data.prepare`: the former name of `timecycle.prepare`."""

from timecycle.prepare import prepare_davis, prepare_vlog, run

__all__ = ["prepare_davis", "prepare_vlog", "run"]

if __name__ == "__main__":
    run()
