"""Build, test and measure the GPU kernels on a machine with a GPU, into one results file: make gpu-check.

benchmarks/gpu_plan.py lists what runs, in four parts, one per call. Every program has a process and a time limit of
its own, and each result is written to the file as soon as it is known, together with its prediction.
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

from benchmarks.gpu_plan import BUILD_FOLDER, LIMITS, plan
from benchmarks.gpu_steps import ROOT, Command, Step, run_step, start
from benchmarks.gpu_table import table
from timecycle.errors import InputError, run_command_line

PREDICTIONS = Path(__file__).parent / "predictions.json"
NEEDED = ("torch", "triton", "numpy", "PIL")  # to run at all
WANTED = ("pytest", "pybind11", "safetensors", "cv2", "tqdm")  # by some steps
WORKERS = max(1, min(14, (os.cpu_count() or 1) - 2))  # processes that compile or test in parallel


def why_not() -> str | None:
    """Why the check cannot run on this machine, in one sentence; None if it can."""
    for package in NEEDED:
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed for {sys.executable}; expected what has it (make PYTHON=...)"
    if not importlib.import_module("torch").cuda.is_available():
        return "there is no GPU that PyTorch can use; make gpu-check needs one"
    return None


def missing() -> list[str]:
    """A sentence for each missing package that some steps need."""
    lacking = (package for package in WANTED if importlib.util.find_spec(package) is None)
    return [f"{package} is not installed for {sys.executable}" for package in lacking]


class Results:
    """The results file of a run, replaced atomically after every result."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.content = path, about | {"parts": {}}

    def save(self, part: str, step: str, outcome: dict[str, Any]) -> None:
        """Write the file with a step's outcome so far."""
        from timecycle.files import write_bytes  # imported after why_not has checked the packages

        self.content["parts"].setdefault(part, {})[step] = outcome
        write_bytes(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


def run_part(part: str, steps: Sequence[Step], results: Results, begin: Callable[[Command], Any] = start) -> bool:
    """Run a part's steps in turn; returns whether all succeeded. A failed step does not stop the next.

    Time that a step does not use is added to the next ones.
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
    """The hardware, versions and commit of the measurements. name: used instead of git's commit."""
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
    """<folder>/<gpu>/<date>-<commit>-<part>.json, in portable characters.

    Without a folder: $OUT/<gpu>-<date>-<commit>-<part>.json if OUT is set, else below benchmarks/results.
    """
    gpu, commit = (re.sub(r"[^A-Za-z0-9]+", "-", about[key]).strip("-") for key in ("gpu", "commit"))
    name = f"{about['date']}-{commit}-{part}.json"
    if folder is None and os.environ.get("OUT"):
        return Path(os.environ["OUT"]) / f"{gpu.lower()}-{name}"
    return (folder or ROOT / "benchmarks" / "results") / gpu.lower() / name


def main() -> None:
    """Run the check and print the table. Exits with status 1 if anything failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("part", choices=["all", *LIMITS])
    parser.add_argument("--results", help="folder of the results (default: $OUT, else benchmarks/results)")
    parser.add_argument("--commit", help="name of the code where git is not available")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        raise InputError(reason)
    known = about(options.commit)
    results = Results(results_path(Path(options.results) if options.results else None, known, options.part), known)
    steps = plan(BUILD_FOLDER, WORKERS)
    wanted = list(LIMITS) if options.part == "all" else [options.part]
    good = [run_part(part, steps[part], results) for part in wanted]
    print("\n".join(["", *table(results.content), f"written to {results.path}"]))
    if not all(good):
        sys.exit(1)


if __name__ == "__main__":
    run_command_line(main)
