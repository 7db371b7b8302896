"""Build, test and measure the GPU kernels on a machine with a GPU, into one results file: make gpu-check.

What runs is benchmarks/gpu_plan.py: four parts, a call each. Everything that is found out by a process of its own with
a time limit is in the results file the moment it is known, however the run ends, and beside it what was predicted.
"""

import argparse
import importlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import sys
import time
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_plan import LIMITS, build_folder, plan
from benchmarks.gpu_steps import ROOT, Command, Process, Step, run_step, start
from benchmarks.gpu_table import table
from timecycle.errors import InputError, run_command_line

PREDICTIONS = Path(__file__).parent / "predictions.json"
NEEDED = ("torch", "triton", "numpy", "PIL")  # to begin at all
WANTED = ("pytest", "pybind11", "safetensors", "cv2", "tqdm")  # by a step or another
WORKERS = max(1, min(14, (os.cpu_count() or 1) - 2))
"""Processes that compile or test side by side."""


def why_not() -> str | None:
    """Why there is nothing to check here, in one sentence; None if there is a GPU."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed for {sys.executable}; expected what has it (make PYTHON=...)"
    if not importlib.import_module("torch").cuda.is_available():
        return "there is no GPU that PyTorch can use; make gpu-check needs one"
    return None


def missing() -> list[str]:
    """What a step will lack, a sentence each."""
    lacking = (package for package in WANTED if importlib.util.find_spec(package) is None)
    return [f"{package} is not installed for {sys.executable}" for package in lacking]


class Results:
    """The results file of a run: whole at any moment."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.content = path, about | {"parts": {}}

    def save(self, part: str, step: str, outcome: dict[str, Any]) -> None:
        """Write the file with what a step has come to so far."""
        from timecycle.files import write_bytes  # needs packages that why_not asks for first

        self.content["parts"].setdefault(part, {})[step] = outcome
        write_bytes(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


def run_part(part: str, steps: Sequence[Step], results: Results, begin: Callable[[Command], Process] = start) -> bool:
    """Run a part's steps in turn; whether all went well. A step that fails does not stop the next.

    A step that ends early leaves its time to those behind it.
    """
    predictions = json.loads(PREDICTIONS.read_text())
    lacking = missing()
    results.save(part, "packages", {"failed": lacking, "figures": [], "seconds": 0.0})
    good, beginning, end = not lacking, time.monotonic(), 0.0
    for step in steps:
        end += step.seconds
        seconds = beginning + end - time.monotonic()
        print(f"==> {part}: {step.name} (at most {seconds:.0f} s)", flush=True)

        def save(outcome: dict[str, Any], name: str = step.name) -> None:
            results.save(part, name, outcome)

        good = not run_step(step, seconds, save, begin, predictions)["failed"] and good
    return good


def about(name: str | None) -> dict[str, Any]:
    """What the figures were measured on. name: of the code, if git is not to be asked for its commit."""
    import torch

    from benchmarks.gpu_timing import CLOCKS, nvidia_smi
    from timecycle.provenance import commit

    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H%MZ"),
        "commit": name or commit(7) or "unknown",
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_mb": round(properties.total_memory / 1e6),
        "l2_mb": round(properties.L2_cache_size / 1e6, 1),
        "driver": nvidia_smi("driver_version").get("driver_version", "unknown"),
        "clocks at the start": nvidia_smi(*CLOCKS),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "triton", "numpy")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda, "platform": platform.platform()},
    }


def results_path(folder: Path | None, about: dict[str, Any], part: str) -> Path:
    """<folder>/<gpu>/<date>-<commit>-<part>.json, in letters that every file system takes.

    Without a folder, in $OUT if there is one: what brings files from one machine to another takes few folders.
    """
    gpu, commit = (re.sub(r"[^A-Za-z0-9]+", "-", about[key]).strip("-") for key in ("gpu", "commit"))
    name = f"{about['date']}-{commit}-{part}.json"
    if folder is None and os.environ.get("OUT"):
        return Path(os.environ["OUT"]) / f"{gpu.lower()}-{name}"
    return (folder or ROOT / "benchmarks" / "results") / gpu.lower() / name


def main() -> None:
    """Check, and print the table last. Status 1 if anything failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("part", choices=["all", *LIMITS])
    parser.add_argument("--results", help="folder of the results (default: $OUT, else benchmarks/results)")
    parser.add_argument("--commit", help="what to call the code where there is no git")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        raise InputError(reason)
    known = about(options.commit)
    results = Results(results_path(Path(options.results) if options.results else None, known, options.part), known)
    steps = plan(build_folder(), WORKERS)
    wanted = list(LIMITS) if options.part == "all" else [options.part]
    good = [run_part(part, steps[part], results) for part in wanted]
    print("\n".join(["", *table(results.content), f"written to {results.path}"]))
    if not all(good):
        sys.exit(1)


if __name__ == "__main__":
    run_command_line(main)
