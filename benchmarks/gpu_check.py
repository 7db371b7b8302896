"""Build, tests, benchmarks and compute-sanitizer on a machine with a GPU, into one results file: make gpu-check.

Each part is a process of its own with a time limit, so that a part that crashes takes nothing with it. The results file
is written anew after every figure: what was computed is kept, however the run ends.
"""

import argparse
import contextlib
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from benchmarks.gpu_table import table
from timecycle.errors import InputError, run_command_line

ROOT = Path(__file__).parents[1]
BUDGET = 570
"""Seconds that a run may take in all; a part that would run longer is stopped."""
WORKERS = min(8, os.cpu_count() or 1)
"""Processes that compile kernels side by side."""
GPU_TESTS = (
    "tests/test_gpu.py",
    "tests/test_kernels.py",
    "tests/test_cuda_kernels.py",
    "tests/test_propagate_sequence.py",
)


def why_not() -> str | None:
    """Why there is nothing to check here, in one sentence; None if there is a GPU."""
    for package in ("torch", "triton", "numpy", "PIL"):
        if importlib.util.find_spec(package) is None:
            return f"{package} is not installed for {sys.executable}; expected what has it (make PYTHON=...)"
    if not importlib.import_module("torch").cuda.is_available():
        return "there is no GPU that PyTorch can use; make gpu-check needs one"
    return None


class Results:
    """The results file of a run: whole at any moment."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self.content = path, about | {"parts": {}}

    def save(self, part: str, outcome: dict[str, Any]) -> None:
        """Write the file with what a part has come to so far."""
        from timecycle.files import write_bytes  # needs packages that why_not asks for first

        self.content["parts"][part] = outcome
        write_bytes(self.path, (json.dumps(self.content, indent=1) + "\n").encode())


def lines_of(command: list[str], seconds: float, environment: dict[str, str] | None = None) -> Iterator[str]:
    """Run a command in the repository, yield its lines, output and errors together, and last its ending.

    Lines are shown too, but those of JSON, which are for the results file. The last line is "" if it ended with
    status 0, else says how it ended; after `seconds` it is stopped with all it started.
    """
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=os.environ | (environment or {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        start_new_session=True,
    )
    late = threading.Event()

    def stop() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):  # it ended meanwhile
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(1.0, seconds), stop)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if not line.startswith("{"):
                print("    " + line, end="", flush=True)
            yield line.rstrip("\n")
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    if late.is_set():
        yield f"stopped after {seconds:.0f} s"
    else:
        yield "" if process.returncode == 0 else f"ended with status {process.returncode}"


def build(seconds: float, save: Callable[[dict[str, Any]], None]) -> None:
    """The native module, or the line that says why it is not there."""
    *lines, ending = lines_of([sys.executable, "setup.py", "--quiet", "build_ext"], seconds)
    reasons = [line for line in lines if "not built" in line]
    save({"failed": [ending] if ending else [], "said": reasons or [line for line in lines if "built" in line]})


def kernel_tests(seconds: float, save: Callable[[dict[str, Any]], None]) -> None:
    """The tests that concern the kernels, on the GPU."""
    run_pytest(seconds, save, GPU_TESTS)


def suite(seconds: float, save: Callable[[dict[str, Any]], None]) -> None:
    """The whole test suite, most of which is about the CPU: only when asked for."""
    run_pytest(seconds, save, ("tests",))


def run_pytest(seconds: float, save: Callable[[dict[str, Any]], None], files: tuple[str, ...]) -> None:
    """Tests, on as many processes as compile kernels well side by side."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "--continue-on-collection-errors", f"--junitxml={report}"]
        if importlib.util.find_spec("xdist"):  # most of the time goes into compiling kernels
            command += ["-n", str(WORKERS)]
        *_, ending = lines_of([*command, *files], seconds)
        outcome: dict[str, Any] = read_report(report.read_text()) if report.is_file() else {"failed": []}
    if ending and not outcome["failed"] and not outcome.get("not installed"):  # no test at all, or processes that died
        outcome["failed"].append(f"pytest {ending}")
    save(outcome)


def read_report(xml: str) -> dict[str, Any]:
    """Counts and names from pytest's JUnit report; files that lack a package of others are named apart."""
    outcome: dict[str, Any] = {"passed": 0, "skipped": 0, "failed": [], "not installed": []}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}".removeprefix("::")
        problem = case.find("failure") if case.find("failure") is not None else case.find("error")
        if problem is not None:
            message = " ".join((problem.get("message") or "").split())[:300]
            missing = re.search(r"No module named '(\w+)", f"{message} {problem.text}")
            if missing and missing[1] not in ("timecycle", "tests", "benchmarks"):
                outcome["not installed"].append(f"{name}: {missing[1]}")
            else:
                outcome["failed"].append(f"{name}: {message}")
        else:
            outcome["skipped" if case.find("skipped") is not None else "passed"] += 1
    return outcome


def benchmarks(seconds: float, save: Callable[[dict[str, Any]], None]) -> None:
    """The ceilings, then every case of benchmarks/gpu_cases.py, saved one by one."""
    outcome: dict[str, Any] = {"failed": [], "ceilings": {}, "training": [], "cases": []}
    ending = ""
    for line in lines_of([sys.executable, "-m", "benchmarks.gpu_cases"], seconds):
        ending = line
        if not line.startswith("{"):
            continue
        found = json.loads(line)
        if "ceilings" in found:
            outcome["ceilings"] = found["ceilings"]
            save(outcome)
            continue
        if "sequence" in found:
            found = outcome["sequence"] = found["sequence"]
        elif "training" in found:
            found = found["training"]
            outcome["training"].append(found)
        else:
            outcome["cases"].append(found)
        outcome["failed"] += [f"{found['name']}: {found['error']}"] if "error" in found else []
        print(f"    {found['name']}: {found.get('us', 'failed')}", flush=True)
        save(outcome)
    outcome["failed"] += [ending] if ending else []
    save(outcome)


def fill_kernel_cache(seconds: float) -> None:
    """Compile what the sanitizer will run, side by side; what fails here fails there, and is reported then."""
    end, command = time.monotonic() + seconds, [sys.executable, "-m", "benchmarks.gpu_sanitizer"]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    workers = [subprocess.Popen([*command, str(i), str(WORKERS)], cwd=ROOT, **quiet) for i in range(WORKERS)]
    for worker in workers:
        try:
            worker.wait(max(0.0, end - time.monotonic()))
        except subprocess.TimeoutExpired:
            worker.kill()
            worker.wait()


def sanitizer(seconds: float, save: Callable[[dict[str, Any]], None]) -> None:
    """compute-sanitizer's memcheck and racecheck over every kernel."""
    outcome: dict[str, Any] = {"failed": []}
    program = shutil.which("compute-sanitizer")
    if program is None:
        save(outcome | {"said": "compute-sanitizer is not installed"})
        return
    end = time.monotonic() + seconds
    fill_kernel_cache(seconds / 3)
    # PyTorch asks the driver for what may not be there, and itself raises the errors of calls that matter.
    command = [program, "--report-api-errors", "no", "--error-exitcode", "1"]
    for tool, share in (("memcheck", 0.5), ("racecheck", 1.0)):
        # The allocator would hide one tensor's overrun in the next one's memory.
        environment = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
        run = [*command, "--tool", tool, sys.executable, "-m", "benchmarks.gpu_sanitizer"]
        *lines, ending = lines_of(run, share * (end - time.monotonic()), environment)
        outcome[tool] = [line for line in lines if line.startswith("=========")][-20:]
        outcome["failed"] += [f"{tool} {ending}"] if ending else []
        save(outcome)


PARTS: dict[str, Callable[[float, Callable[[dict[str, Any]], None]], None]] = {
    "build": build,
    "tests": kernel_tests,
    "benchmarks": benchmarks,
    "sanitizer": sanitizer,
    "suite": suite,
}
LIMITS = {"build": 150.0, "tests": 200.0, "benchmarks": 360.0}
"""Seconds a part may take when others follow it; the others take what is left."""


def run_parts(wanted: list[str], results: Results) -> bool:
    """Run the parts in turn; whether all went well. A part that fails does not stop the next."""
    end, good = time.monotonic() + BUDGET, True
    for name in wanted:
        left = end - time.monotonic()
        seconds = left if name == wanted[-1] else min(left, LIMITS.get(name, left))
        print(f"==> {name} (at most {seconds:.0f} s)", flush=True)
        start = time.monotonic()

        def save(outcome: dict[str, Any], name: str = name, start: float = start) -> None:
            results.save(name, outcome | {"seconds": round(time.monotonic() - start, 1)})

        try:
            PARTS[name](seconds, save)
        except Exception as error:  # what the next parts find out counts too
            so_far = results.content["parts"].get(name, {"failed": []})
            save(so_far | {"failed": [*so_far["failed"], f"{type(error).__name__}: {error}"]})
        good = good and not results.content["parts"][name]["failed"]
    return good


def about(commit: str | None) -> dict[str, Any]:
    """What the figures were measured on."""
    import torch

    from benchmarks.gpu_timing import CLOCKS, nvidia_smi

    if not commit and shutil.which("git"):
        command = ["git", "describe", "--always", "--dirty"]
        commit = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False).stdout.strip()
    properties = torch.cuda.get_device_properties(0)
    return {
        "gpu": properties.name,
        "date": datetime.now(UTC).strftime("%Y-%m-%dT%H%MZ"),
        "commit": commit or "unknown",
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "memory_mb": round(properties.total_memory / 1e6),
        "l2_mb": round(properties.L2_cache_size / 1e6, 1),
        "driver": nvidia_smi("driver_version").get("driver_version", "unknown"),
        "clocks at the start": nvidia_smi(*CLOCKS),
        "versions": {name: importlib.metadata.version(name) for name in ("torch", "triton", "numpy")}
        | {"python": platform.python_version(), "cuda": torch.version.cuda, "platform": platform.platform()},
    }


def results_path(folder: Path, about: dict[str, Any]) -> Path:
    """<folder>/<gpu>/<date>-<commit>.json, in letters that every file system takes."""
    gpu, commit = (re.sub(r"[^A-Za-z0-9]+", "-", about[key]).strip("-") for key in ("gpu", "commit"))
    return folder / gpu.lower() / f"{about['date']}-{commit}.json"


def main() -> None:
    """Check, and print the table last. Status 1 if anything failed, 2 without a GPU."""
    parser = argparse.ArgumentParser(prog="make gpu-check", description=__doc__)
    parser.add_argument("part", nargs="?", default="all", choices=["all", *PARTS])
    parser.add_argument("--results", type=Path, default=ROOT / "benchmarks" / "results", help="folder of the results")
    parser.add_argument("--commit", help="what to call the code where there is no git")
    options = parser.parse_args()
    reason = why_not()
    if reason:
        raise InputError(reason)
    known = about(options.commit)
    results = Results(results_path(options.results, known), known)
    wanted = [name for name in PARTS if name != "suite"] if options.part == "all" else [options.part]
    good = run_parts(wanted, results)
    print("\n".join(["", *table(results.content), f"written to {results.path}"]))
    if not good:
        sys.exit(1)


if __name__ == "__main__":
    run_command_line(main)
