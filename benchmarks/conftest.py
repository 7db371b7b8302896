"""Commit, chip and versions stored with every benchmark, and a summary at the end."""

from typing import Any

import torch

from benchmarks.compare import summary
from timecycle.provenance import commit, versions


def pytest_benchmark_update_machine_info(config: Any, machine_info: dict[str, Any]) -> None:
    """Called by pytest-benchmark before it stores its results."""
    machine_info["timecycle"] = {
        **versions(),
        "commit": commit(7) or "not a git checkout",
        "threads": torch.get_num_threads(),
        "cpu capability": torch.backends.cpu.get_cpu_capability(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
    }


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """Called by pytest at the end: times and memory, which pytest-benchmark's table does not show."""
    lines = summary()
    if lines:
        terminalreporter.section("ours and the rivals (medians; memory beyond what was in use before)")
        for line in lines:
            terminalreporter.write_line(line)
