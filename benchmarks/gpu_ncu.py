"""One launch of the CUDA kernel under Nsight Compute: python -m benchmarks.gpu_ncu.

Tensor pipe, L2, shared memory, registers, and what warps wait for. Whole sections are asked for, since names of single
metrics change from chip to chip and one that is unknown ends the program; what counts is picked from them.
"""

import csv
import re
import subprocess
import sys
from typing import Any

from benchmarks.gpu_setting import attempt, program
from timecycle.errors import run_command_line

KERNEL = "scan_sm90"
SECTIONS = (
    "SpeedOfLight",
    "ComputeWorkloadAnalysis",
    "MemoryWorkloadAnalysis",
    "MemoryWorkloadAnalysis_Tables",
    "WarpStateStats",
    "SchedulerStats",
    "LaunchStats",
    "Occupancy",
)
OPTIONS = (
    *("--clock-control", "none"),  # the machine's settings are not ours to change
    *("--target-processes", "all"),
    *("--kernel-name", f"regex:{KERNEL}"),
    *("--launch-skip", "1"),
    *("--launch-count", "1"),
    *(word for section in SECTIONS for word in ("--section", section)),
    *("--page", "raw"),
    "--csv",
)
WANTED = re.compile(
    r"gpu__time_duration|pipe_tensor|lts__t.*(pct|throughput)|lts__.*hit_rate|l1tex__data.*(bank_conflicts|shared)"
    r"|issue_stalled.*(ratio|per_issue)|sm__throughput|dram__throughput|registers_per_thread|issue_active|sm__cycles_active"
)


def metrics(said: str) -> dict[str, str]:
    """What counts of ncu's table, by metric, with its unit. Raises ValueError if no launch is in it."""
    lines = said.splitlines()
    start = next((place for place, line in enumerate(lines) if line.startswith('"ID"')), None)
    rows = [] if start is None else list(csv.reader(lines[start:]))
    if len(rows) < 3:
        raise ValueError(f"ncu has measured no launch of {KERNEL}: {' '.join(lines[-8:])[:600]}")
    return {
        name: f"{value} {unit}".strip()
        for name, unit, value in zip(rows[0], rows[1], rows[2], strict=False)
        if name == "Kernel Name" or WANTED.search(name)
    }


def profile() -> dict[str, Any]:
    """Run ncu. Raises FileNotFoundError if it is not there, ValueError if it measured nothing."""
    ncu = program("ncu", "/opt/nvidia/nsight-compute/*", "/usr/local/cuda*/bin")
    if ncu is None:
        raise FileNotFoundError("ncu is not installed")
    command = [ncu, *OPTIONS, sys.executable, "-m", "benchmarks.gpu_headline", "cuda", "--once"]
    done = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False)
    found = metrics(done.stdout)
    if done.returncode:
        raise ValueError(f"ncu ended with status {done.returncode}: {done.stdout[-500:]}")
    return {"metrics": found}


def main() -> None:
    """Say what it measured."""
    attempt("ncu, B = 16, k = 5", profile)


if __name__ == "__main__":
    run_command_line(main)
