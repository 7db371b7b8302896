"""One launch of the CUDA kernel under Nsight Compute: python -m benchmarks.gpu_ncu.

Tensor pipe, L2, shared memory, registers and warp stalls. Whole sections are collected, from which WANTED selects:
names of single metrics differ between chips, and ncu ends at an unknown one.
"""

import csv
import re
from typing import Any

from benchmarks.gpu_setting import attempt, run_under
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
    *("--clock-control", "none"),  # do not change the machine's settings
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
    """The wanted metrics of ncu's table, each with its unit. Raises ValueError if it has no launch."""
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
    """Run ncu. Raises FileNotFoundError if it is not installed, ValueError if it measured nothing."""
    places = ("/opt/nvidia/nsight-compute/*", "/usr/local/cuda*/bin")
    done = run_under("ncu", places, OPTIONS, ("gpu_headline", "cuda", "--once"))
    found = metrics(done.stdout)
    if done.returncode:
        raise ValueError(f"ncu ended with status {done.returncode}: {done.stdout[-500:]}")
    return {"metrics": found}


def main() -> None:
    """Print the metrics."""
    attempt("ncu, B = 16, k = 5", profile)


if __name__ == "__main__":
    run_command_line(main)
