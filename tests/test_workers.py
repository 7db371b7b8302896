"""Processes that score masks: one that is killed, and a parent that is."""

import multiprocessing
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from tests.test_scores import ROOT, make_set, moving_squares
from timecycle import workers
from timecycle.errors import InputError
from timecycle.files import is_alive
from timecycle.scores import evaluate


def test_a_worker_that_is_killed_ends_the_scoring_with_a_sentence(tmp_path: Path) -> None:
    masks = np.repeat(moving_squares(), 20, axis=0)
    davis, results = make_set(tmp_path, {"a": (masks, masks)})

    def kill() -> None:
        end = time.monotonic() + 60
        while not (children := multiprocessing.active_children()) and time.monotonic() < end:
            time.sleep(0.01)
        children[0].kill()

    killer = threading.Thread(target=kill)
    killer.start()
    with pytest.raises(InputError, match="a process that scored masks was killed, perhaps for want of memory"):
        evaluate(davis, results, workers=2)
    killer.join()


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    masks = np.repeat(moving_squares(), 20, axis=0)
    davis, results = make_set(tmp_path, {f"a{i}": (masks, masks) for i in range(20)})
    command = [sys.executable, "-m", "timecycle.scores", "--davis", davis, "--results", results, "--workers", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(command, env=environment, stdout=-1, stderr=-1, start_new_session=True) as parent:
        assert waited_for(lambda: len(processes_of(parent.pid)) >= 3)
        parent.kill()
        parent.wait()
    assert waited_for(lambda: not processes_of(parent.pid))


def _die_soon() -> None:
    """In a process of a pool: it is killed while it waits for work, with the lock for which the others wait."""
    threading.Timer(0.3, os.kill, (os.getpid(), signal.SIGKILL)).start()


def test_a_pool_ends_though_a_killed_process_holds_the_lock_of_the_others(monkeypatch) -> None:
    monkeypatch.setattr(workers, "PATIENCE", 4.0)
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(2, context, workers.begin_worker) as pool, workers.ending(pool):
        pool.submit(time.sleep, 2)
        pool.submit(_die_soon).result()
        processes = list(pool._processes)
        start = time.monotonic()
    assert 3 < time.monotonic() - start < 10
    assert waited_for(lambda: not any(is_alive(pid) for pid in processes))


def processes_of(session: int) -> list[int]:
    """The living processes of a session."""
    found = []
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text().rpartition(")")[2].split()
        except OSError:  # it has ended meanwhile
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.append(int(stat.parent.name))
    return found


def waited_for(condition: Callable[[], bool]) -> bool:
    end = time.monotonic() + 30
    while not condition() and time.monotonic() < end:
        time.sleep(0.05)
    return condition()
