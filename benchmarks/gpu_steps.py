"""A step of make gpu-check: programs with time limits, and what they say as it comes."""

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
from typing import IO, Any, Protocol

ROOT = Path(__file__).parents[1]
REHEARSAL = "TIMECYCLE_GPU_REHEARSAL"
"""The variable that makes every program here a rehearsal: a folder, with what stands for a GPU's programs."""
LAST_LINES = 12
"""Of the output of a program that failed, which are kept."""


@dataclass(frozen=True)
class Command:
    """A Python program: a module of this package, or a file; it prints a line of JSON for everything it finds out."""

    program: str
    arguments: tuple[str, ...] = ()
    seconds: float = 600.0
    """At most; less where less of the step's time is left."""

    def line(self) -> list[str]:
        """What a shell would run."""
        where = [self.program] if self.program.endswith(".py") else ["-m", f"benchmarks.{self.program}"]
        return [sys.executable, *where, *self.arguments]

    def __str__(self) -> str:
        return " ".join((self.program, *self.arguments))


@dataclass(frozen=True)
class Step:
    """Commands that belong together."""

    name: str
    seconds: float
    """In all; what earlier steps of a part leave over is added."""
    commands: tuple[Command, ...]
    at_once: int = 1


class Process(Protocol):
    """What is wanted of a process; it leads a process group."""

    pid: int
    stdout: IO[str] | None
    returncode: int | None

    def wait(self) -> int:
        """Its status, when it has ended."""

    def poll(self) -> int | None:
        """Its status if it has ended."""


def start(command: Command) -> Process:
    """Run a command in the repository, output and errors together."""
    return subprocess.Popen(
        command.line(),
        cwd=ROOT,
        env=os.environ | {"PYTHONUNBUFFERED": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        process_group=0,  # and no session of its own: who ends ours ends it too
    )


def lines_of(process: Process, seconds: float) -> Iterator[str]:
    """A process's lines, and last its ending: "" for status 0, else how it ended.

    After `seconds` it is stopped, with all that it started.
    """
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
    begin: Callable[[Command], Process] = start,
    predictions: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Run a step's commands within so many seconds, and save what it has come to after everything that is said.

    Returns the outcome: "figures" (what was said, with what was predicted of it), "failed" (one sentence a failure),
    "seconds". A command that says nothing has failed, whatever its status.
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
    """What a line of JSON says; None for any other line."""
    if not line.startswith("{"):
        return None
    try:
        found = json.loads(line)
    except ValueError:
        return None
    return found if "name" in found else None


def brief(figure: dict[str, Any]) -> str:
    """Its plain numbers, for a reader who waits."""
    numbers = [f"{name} {value}" for name, value in figure.items() if isinstance(value, int | float)]
    return ": " + ", ".join(numbers[:5]) if numbers else ""
