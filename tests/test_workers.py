"""Worker processes that score masks: killed workers, and a killed parent."""

import errno
import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import numpy as np
import pytest

from tests.score_cases import make_set, moving_squares
from tests.test_scores import ROOT
from timecycle import workers
from timecycle.errors import InputError
from timecycle.evaluation.davis.scores import score_results
from timecycle.files import is_alive


def test_a_worker_that_is_killed_ends_the_scoring_with_a_sentence(tmp_path: Path) -> None:
    masks = np.repeat(moving_squares(), 20, axis=0)
    davis, results = make_set(tmp_path, a=(masks, masks))

    def kill() -> None:
        assert waited_for(multiprocessing.active_children)
        multiprocessing.active_children()[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match="a scoring process was killed, possibly out of memory"):
        score_results(davis, results, workers=2)
    killer.join()


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    masks = np.repeat(moving_squares(), 20, axis=0)
    davis, results = make_set(tmp_path, **{f"a{i}": (masks, masks) for i in range(20)})
    command = [sys.executable, "-m", "timecycle.scores", "--davis", davis, "--results", results, "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, start_new_session=True) as parent:
        assert waited_for(lambda: len(processes_of(parent.pid)) >= 3)
        parent.kill()
        parent.wait()
    assert waited_for(lambda: not processes_of(parent.pid))


def _die_soon() -> None:
    """Kills a worker while it waits for work and holds the queue's lock."""
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()


def _pid(_: int) -> int:
    time.sleep(0.1)
    return os.getpid()


def test_a_pool_ends_though_a_killed_worker_holds_the_queues_lock(monkeypatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 4.0)
    with workers.pool(2, workers.begin_worker) as pool:
        started: set[int] = set()
        while len(started) < 2:
            started.update(pool.map(_pid, range(2)))
        pool.submit(time.sleep, 2)
        pool.submit(_die_soon).result()
        processes = list(pool._processes)
        start = time.monotonic()
    assert 3 < time.monotonic() - start < 10
    assert waited_for(lambda: not any(is_alive(pid) for pid in processes))


def test_a_worker_killed_while_another_starts_breaks_the_pool(monkeypatch) -> None:
    """Python before 3.12 then closes a pipe of the new worker, whose descriptor another file may reuse."""
    make_pipe = os.pipe

    def kill_first() -> tuple[int, int]:
        monkeypatch.setattr(os, "pipe", make_pipe)
        number = pool._call_queue._reader.fileno()
        first.kill()
        reader, writer = make_pipe()
        if waited_for(lambda: pool._call_queue._reader.closed, 2):
            os.dup2(reader, number)
            os.close(reader)
            reader = number
        return reader, writer

    with workers.pool(2, workers.begin_worker) as pool:
        pool.submit(time.sleep, 60)
        (first,) = pool._processes.values()
        # Of the two pipes that a process is started with, it reads from the second.
        monkeypatch.setattr(os, "pipe", lambda: monkeypatch.setattr(os, "pipe", kill_first) or make_pipe())
        with pytest.raises(BrokenProcessPool):
            pool.submit(time.sleep, 1).result()
    assert not first.is_alive()


def test_a_worker_that_cannot_start_breaks_the_pool(monkeypatch) -> None:
    def fail() -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with workers.pool(1, workers.begin_worker) as pool:
        monkeypatch.setattr(os, "pipe", fail)
        with pytest.raises(BrokenProcessPool, match="Too many open files"):
            pool.submit(int)


def processes_of(session: int) -> list[int]:
    """The running processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def waited_for(condition: Callable[[], object], seconds: float = 60) -> bool:
    """Poll until a condition holds. Returns whether it does."""
    end = time.monotonic() + seconds
    while not condition() and time.monotonic() < end:
        time.sleep(0.02)
    return bool(condition())
