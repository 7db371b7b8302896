"""A process of a fuzz run: a range of cases of one function.

It writes the index of the current case to a file, so that its parent knows which case crashed it or timed out.
"""

import functools
import importlib
import json
import os
import random
import resource
import shutil
import sys
import traceback
import warnings
from pathlib import Path
from typing import Any

from timecycle.errors import InputError

MEMORY = 10 << 30
"""Limit of the address space, bytes; beyond it allocations raise MemoryError."""


def run_case(target: str, function: str, seed: int, index: int, folder: Path) -> str:
    """Run a case. Returns "passed" or "refused"; a fault is raised."""
    case = getattr(importlib.import_module(f"tests.fuzz.targets.{target}"), function)
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    try:
        case(random.Random(f"{target}.{function}/{seed}/{index}"), folder)
    except InputError as error:
        text = str(error)
        assert 0 < len(text) < 2000, f"no sentence: {text!r}"
        assert "\n" not in text, f"no sentence: {text!r}"
        return "refused"
    return "passed"


def fault(error: BaseException) -> str:
    """An exception and its place as one line."""
    frames = traceback.extract_tb(error.__traceback__)
    own = [frame for frame in frames if "/timecycle/" in frame.filename] or frames
    place = f"{Path(own[-1].filename).name}:{own[-1].lineno}" if own else "?"
    return f"{type(error).__name__} at {place}: {' '.join(str(error).split())[:200]}"


def main() -> None:
    """Run cases start to stop - 1; counts and faults are written to `report` in the folder, as JSON."""
    target, function, seed, start, stop, folder = sys.argv[1:]
    if "asan" not in os.environ.get("LD_PRELOAD", ""):  # AddressSanitizer reserves terabytes of address space
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
    warnings.simplefilter("ignore")
    counts: dict[str, Any] = {"passed": 0, "refused": 0, "faults": []}
    place = os.open(Path(folder) / "place", os.O_RDWR | os.O_CREAT)
    report = Path(folder) / "report"
    run = functools.partial(run_case, target, function, int(seed), folder=Path(folder) / "case")
    importlib.import_module(f"tests.fuzz.targets.{target}")
    for index in range(int(start), int(stop)):
        os.pwrite(place, f"{index:12d}".encode(), 0)
        try:
            counts[run(index)] += 1
        except (Exception, SystemExit) as error:
            counts["faults"].append([index, fault(error)])
        if index % 100 == 0 or counts["faults"]:
            report.write_text(json.dumps(counts | {"next": index + 1}))
    report.write_text(json.dumps(counts | {"next": int(stop)}))
    os.pwrite(place, f"{stop:>12}".encode(), 0)


if __name__ == "__main__":
    main()
