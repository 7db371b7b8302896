"""Processes that work for another one: they leave signals to it, and end when it does."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess

PATIENCE = 6.0  # seconds in which processes end that are told to


def begin_worker() -> None:
    """To be called first in a process of a pool.

    Ctrl-C and SIGTERM reach every process of a group, and the parent handles them for all. A parent that is killed
    cannot end its workers, which would wait for work forever.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)


def kill_workers(pool: ProcessPoolExecutor) -> None:
    """End the processes of a pool of which one was killed; leaving the pool waits for the others.

    Python ends them by SIGTERM, which a process that just began may lose, and which `begin_worker` ignores.
    """
    for process in _processes(pool):
        process.kill()


def _processes(pool: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((pool._processes or {}).values())  # Python 3.14 has methods to end them


@contextmanager
def ending(pool: ProcessPoolExecutor) -> Iterator[None]:
    """End a pool when the block is left: what is running ends, no more is begun, and no process stays.

    One that was killed may have held the lock of the queue through which the others are told to end. Those would wait
    forever, and leaving the pool for them; so after PATIENCE they are killed.
    """
    try:
        yield
    finally:
        running = _processes(pool)
        pool.shutdown(wait=False, cancel_futures=True)
        deadline = time.monotonic() + PATIENCE
        while running and (left := deadline - time.monotonic()) > 0:
            ended = connection.wait([process.sentinel for process in running], left)
            running = [process for process in running if process.sentinel not in ended]
        for process in running:
            process.kill()
