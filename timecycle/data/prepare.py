"""timecycle.prepare under its name of version 0.1: `python -m timecycle.data.prepare`, and its functions."""

import importlib
import runpy
from typing import Any


def __getattr__(name: str) -> Any:
    """Imported when used, since `data` does not depend on the evaluations, one of which lists DAVIS."""
    return getattr(importlib.import_module("timecycle.prepare"), name)


if __name__ == "__main__":
    runpy.run_module("timecycle.prepare", run_name="__main__", alter_sys=True)
