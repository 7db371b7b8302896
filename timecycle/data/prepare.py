"""timecycle.prepare under its name from before 0.1.0: `python -m timecycle.data.prepare`, and its functions."""

from timecycle import deprecated

__getattr__ = deprecated.moved(__name__, "timecycle.prepare")
