"""Pytest plugin of benchmarks/gpu_tests.py: runs a share of the tests and prints lines of JSON on each.

    {"started": "tests/test_a.py::test_b"}
    {"test": "tests/test_a.py::test_b", "outcome": "passed", "seconds": 0.1, "message": ""}

After a test that leaves a dead CUDA context the process exits, since all its later tests would fail.
"""

import json
import os
from collections.abc import Iterator
from typing import Any

import pytest

from benchmarks.gpu_setting import CANNOT_GO_ON, context_is_dead


class Lines:
    """Writes the lines into a pipe of the parent process."""

    def __init__(self, descriptor: int) -> None:
        self._file = os.fdopen(descriptor, "w", buffering=1)

    def write(self, **line: Any) -> None:
        """Write a line."""
        self._file.write(json.dumps(line) + "\n")

    def pytest_runtest_logstart(self, nodeid: str) -> None:
        """Called when a test begins."""
        self.write(started=nodeid)

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Report a file that cannot be imported as a failed test."""
        if report.failed:
            self.write(test=report.nodeid, outcome="failed", seconds=0.0, message=short(report.longreprtext))

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        """Combine the reports of a test's three phases."""
        self.reports: list[pytest.TestReport] = []
        yield
        bad = [report for report in self.reports if report.failed]
        left_out = any(report.skipped for report in self.reports)
        self.write(
            test=item.nodeid,
            outcome="failed" if bad else "skipped" if left_out else "passed",
            seconds=round(sum(report.duration for report in self.reports), 2),
            message=short("\n".join(report.longreprtext for report in bad)),
        )
        if bad and context_is_dead():
            os._exit(CANNOT_GO_ON)

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called after each phase of a test."""
        self.reports.append(report)


def short(text: str) -> str:
    """The error lines of a report, or its end, on one line."""
    lines = [line.removeprefix("E").strip() for line in text.splitlines() if line.startswith("E ")]
    return " ".join(" ".join(lines or text.splitlines()[-3:]).split())[:500]


def pytest_addoption(parser: pytest.Parser) -> None:
    """Add the options that gpu_tests passes."""
    parser.addoption("--share", nargs=3, type=int, metavar=("I", "N", "DONE"), help="every N-th test from the I-th on")
    parser.addoption("--lines-to", type=int, help="file descriptor to write lines to")
    parser.addoption("--one-each", action="store_true", help="the last test of every file only")


def pytest_configure(config: pytest.Config) -> None:
    """Register the writer."""
    config.pluginmanager.register(Lines(config.getoption("--lines-to")))


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Keep the chosen share, without its first DONE tests."""
    if config.getoption("--one-each"):
        items[:] = {item.path: item for item in items}.values()
    first, step, done = config.getoption("--share")
    items[:] = items[first::step][done:]
