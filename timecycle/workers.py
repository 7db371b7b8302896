"""Processes that work for another one: they leave signals to it, and end when it does."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

PATIENCE = 6.0  # seconds in which processes end that are told to

# Forking is unsafe once a library has started threads, and torch and OpenCV do.
SPAWN = multiprocessing.get_context("spawn")


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


@contextmanager
def pool(jobs: int, begin: Callable[..., None], *arguments: Any) -> Iterator[ProcessPoolExecutor]:
    """So many processes that call `begin`, which calls `begin_worker`; none of them stays when the block is left.

    What is running then ends, and no more is begun. A process that was killed may have held the lock of the queue
    through which the others are told to end: those would wait forever, so after PATIENCE they are killed.

    Raises:
        BrokenProcessPool: of `submit` and of the results: a process was killed, or could not begin.
    """
    with _Pool(jobs, SPAWN, begin, arguments) as made:
        try:
            yield made
        except BrokenProcessPool:
            _kill(_processes(made))  # Python does so by SIGTERM, which begin_worker ignores
            raise
        finally:
            running = _processes(made)
            made.shutdown(wait=False, cancel_futures=True)
            deadline = time.monotonic() + PATIENCE
            while running and (left := deadline - time.monotonic()) > 0:
                ended = connection.wait([process.sentinel for process in running], left)
                running = [process for process in running if process.sentinel not in ended]
            _kill(running)


class _Pool(ProcessPoolExecutor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """As Python's own, which begins a process where none is idle.

        When one is killed meanwhile, Python before 3.12 closes the pipes that the new one is given, and may give it
        another file of the same number.
        """
        try:
            return super().submit(fn, *args, **kwargs)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._broken:
                raise
            raise BrokenProcessPool(f"a process could not begin: {error}") from None


def _processes(made: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((made._processes or {}).values())  # Python 3.14 has methods to end them


def _kill(processes: list[BaseProcess]) -> None:
    for process in processes:
        process.kill()
