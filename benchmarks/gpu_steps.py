"""A step of make gpu-check: runs programs with time limits and collects the JSON lines they print."""

import contextlib
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
REHEARSAL = "TIMECYCLE_GPU_REHEARSAL"
"""Environment variable that turns every program here into a rehearsal: a folder with stubs of the CUDA toolkit."""
LAST_LINES = 12  # of a failed program's output, which are stored


@dataclass(frozen=True)
class Command:
    """A Python program, a module of this package or a file, which prints each result as a line of JSON."""

    program: str
    arguments: tuple[str, ...] = ()
    seconds: float = 600.0
    """Time limit; a step's remaining time limits it as well."""

    def line(self) -> list[str]:
        """The command line."""
        where = [self.program] if self.program.endswith(".py") else ["-m", f"benchmarks.{self.program}"]
        return [sys.executable, *where, *self.arguments]

    def __str__(self) -> str:
        return " ".join((self.program, *self.arguments))


@dataclass(frozen=True)
class Step:
    """Commands that share a time limit."""

    name: str
    seconds: float
    """Time limit; what earlier steps of the part did not use is added."""
    commands: tuple[Command, ...]
    at_once: int = 1


def start(command: Command) -> subprocess.Popen:
    """Run a command in the repository, as the leader of a process group; stderr goes to stdout."""
    return subprocess.Popen(
        command.line(),
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # no new session: what ends our session must end it as well
    )


def lines_of(process: Any, seconds: float) -> Iterator[str]:
    """The lines that a process prints, then one on how it ended, "" for exit status 0.

    process: `subprocess.Popen`, or an object with its pid, stdout, returncode, poll and wait. After `seconds` its
    process group is killed.
    """
    late = threading.Event()

    def stop() -> None:
        late.set()
        with contextlib.suppress(ProcessLookupError):  # it has just ended
            os.killpg(process.pid, signal.SIGKILL)

    timer = threading.Timer(max(1.0, seconds), stop)
    timer.start()
    try:
        assert process.stdout is not None
        for line in process.stdout:
            yield line.rstrip("\n")
        process.wait()
    finally:
        timer.cancel()
        if process.poll() is None:
            stop()
            process.wait()
    if late.is_set():
        yield f"stopped after {seconds:.0f} s"
    else:
        yield "" if process.returncode == 0 else f"ended with status {process.returncode}"


def run_step(
    step: Step,
    seconds: float,
    save: Callable[[dict[str, Any]], None],
    begin: Callable[[Command], Any] = start,
    predictions: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a step's commands within `seconds`, calling `save` with the outcome so far after every result.

    Returns the outcome: "figures" (the results, each with its prediction), "failed" (a sentence per failure) and
    "seconds". A command that prints no result has failed, whatever its exit status.
    """
    beginning, lock = time.monotonic(), threading.Lock()
    outcome: dict[str, Any] = {"failed": [], "figures": [], "seconds": 0.0}

    def note(figure: dict[str, Any] | None, failure: str | None) -> None:
        with lock:
            if figure is not None:
                outcome["figures"].append(figure)
            if failure is not None:
                outcome["failed"].append(failure)
                print(f"    FAILED {failure}", flush=True)
            outcome["seconds"] = round(time.monotonic() - beginning, 1)
            save(outcome)

    def run(command: Command) -> None:
        limit = min(command.seconds, beginning + seconds - time.monotonic())
        if limit < 1:
            note(None, f"{command}: not started, the time of {step.name} is over")
            return
        said, others = 0, []
        for line in lines_of(begin(command), limit):
            figure = figure_of(line)
            if figure is None:
                others.append(line)
                continue
            said += 1
            if figure["name"] in (predictions or {}):
                figure["predicted"] = (predictions or {})[figure["name"]]
            print(f"    {figure['name']}{brief(figure)}", flush=True)
            note(figure, f"{figure['name']}: {figure['error']}" if "error" in figure else None)
        *others, ending = others
        if ending or not said:
            last = " | ".join(line for line in others[-LAST_LINES:] if line.strip())
            note(None, f"{command} {ending or 'found out nothing'}: {last}")

    with ThreadPoolExecutor(step.at_once) as pool:
        list(pool.map(run, step.commands))
    note(None, None)
    return outcome


def figure_of(line: str) -> dict[str, Any] | None:
    """The result in a line of JSON; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if "name" in found else None


def brief(figure: dict[str, Any]) -> str:
    """A result's first numbers, for the console."""
    numbers = [f"{name} {value}" for name, value in figure.items() if isinstance(value, int | float)]
    return ": " + ", ".join(numbers[:5]) if numbers else ""
