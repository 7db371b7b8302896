"""A process that has imported every program and forks to run one, which saves the time of the imports.

Reads jobs from stdin, a line of JSON each, and answers each with a line. It has a single thread, so forking is safe.
"""

import atexit
import faulthandler
import gc
import importlib
import json
import os
import resource
import runpy
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.crash import kill_points

ROOT = Path(__file__).parents[2]
ORPHANS = 10.0
"""Seconds in which a program's child processes must end after it."""
MODULES = (
    "torch", "torch._dynamo", "train", "test_davis", "timecycle.training.command_line",
    "timecycle.evaluation.davis.command", "timecycle.evaluation.davis.score_command", "timecycle.checkpoints.command",
    "timecycle.report", "timecycle.evaluation.davis.inspection", "timecycle.evaluation.comparison.page", "jinja2",
    "timecycle.checkpoint", "timecycle.prepare",
    "timecycle.evaluation.davis.scores", "timecycle.evaluation.jhmdb", "timecycle.evaluation.vip",
    "timecycle.evaluation.badja", "timecycle.evaluation.tapvid",
    "tests.crash.calls", "av", "PIL.JpegImagePlugin", "PIL.PngImagePlugin",
    "multiprocessing.synchronize", "concurrent.futures.process",
)  # fmt: skip


def serve(answers: int) -> dict[str, Any] | None:
    """Run jobs until the input ends. Returns None; in the forked process of a job, that job."""
    for line in sys.stdin:
        job = json.loads(line)
        begin = time.monotonic()
        child = os.fork()
        if child == 0:
            return job
        status = _waited_for(child, begin + job["limit"])
        answer = {"status": status, "seconds": time.monotonic() - begin, "alone": _alone(child)}
        os.write(answers, (json.dumps(answer) + "\n").encode())
    return None


def _waited_for(child: int, deadline: float) -> int | None:
    """The exit status, minus the signal that killed it, or None after a timeout."""
    while True:
        found, status = os.waitpid(child, os.WNOHANG)
        if found:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.killpg(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return None
        time.sleep(0.003)


def _alone(group: int) -> bool:
    """Whether a program's child processes have ended; after some seconds they are killed."""
    deadline = time.monotonic() + ORPHANS
    try:
        while time.monotonic() < deadline:
            os.killpg(group, 0)
            time.sleep(0.003)
        os.killpg(group, signal.SIGKILL)
    except ProcessLookupError:
        return True
    return False


def run(job: dict[str, Any]) -> None:
    """Become the program of a job. Returns or raises SystemExit as it does."""
    os.setsid()
    for number, name in enumerate((os.devnull, job["out"], job["err"])):
        flags = os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_CREAT | os.O_TRUNC
        descriptor = os.open(name, flags, 0o644)
        os.dup2(descriptor, number)
        os.close(descriptor)
    sys.stdout.reconfigure(line_buffering=True)
    faulthandler.dump_traceback_later(0.95 * job["limit"])  # if it hangs
    os.environ.update(job["variables"])
    if "files" in job:  # the largest size of a file
        resource.setrlimit(resource.RLIMIT_FSIZE, (job["files"],) * 2)
    os.chdir(job["folder"])
    kill_points.install()
    kind, _, name = job["program"].partition(":")
    sys.argv = [name, *job["words"]]
    if kind == "script":
        runpy.run_path(str(ROOT / name), run_name="__main__")
    elif kind == "module":
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        call = getattr(importlib.import_module("tests.crash.calls"), name)
        importlib.import_module("timecycle.errors").run_command_line(lambda: call(*job["words"]))


def main() -> None:
    """Import, then serve."""
    answers = os.dup(1)
    os.dup2(2, 1)  # prints must not mix with answers
    for name in MODULES:
        importlib.import_module(name)
    assert len(os.listdir("/proc/self/task")) == 1, "a library has started threads, so that forking is unsafe"
    os.write(answers, b"{}\n")
    gc.collect()
    gc.freeze()
    job = serve(answers)
    os.close(answers)
    _exit(run if job else lambda _: None, job or {})


def _exit(call: Callable[[dict[str, Any]], None], job: dict[str, Any]) -> None:
    """Call, and exit as the interpreter does, but without unloading the libraries, which takes seconds."""
    status = 0
    try:
        call(job)
    except SystemExit as error:
        status = error.code if isinstance(error.code, int) else int(error.code is not None)
        if isinstance(error.code, str):
            print(error.code, file=sys.stderr)
    except BaseException:
        traceback.print_exc()
        status = 1
    threading._shutdown()  # private: waits for threads, as the interpreter does
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    main()
