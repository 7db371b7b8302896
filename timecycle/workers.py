"""Worker processes that ignore their parent's signals and exit when it does. Does not import torch."""

import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import connection
from multiprocessing.process import BaseProcess
from typing import Any

PATIENCE = 6.0  # seconds that workers have to exit before they are killed

# Forking is unsafe once a library has started threads, and torch and OpenCV do.
SPAWN = multiprocessing.get_context("spawn")


def begin_worker() -> None:
    """Must be called first in a worker: ignores SIGINT and SIGTERM, and exits when the parent does.

    Both signals reach all processes of a group; the parent handles them. A killed parent cannot end its workers, which
    would wait for work forever.
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
    """An executor of `jobs` processes, each initialized by `begin(*arguments)`, which calls `begin_worker`.

    Leaving the block cancels tasks that have not started, waits up to PATIENCE for running ones, and kills the
    processes that remain: a killed process may have held the lock of the queue that tells the others to exit.

    Raises:
        BrokenProcessPool: from `submit` and from results: a process was killed, or could not start.
    """
    with _Pool(jobs, SPAWN, begin, arguments) as made:
        try:
            yield made
        except BrokenProcessPool:
            end(_processes(made))  # Python sends SIGTERM, which begin_worker ignores
            raise
        finally:
            running = _processes(made)
            made.shutdown(wait=False, cancel_futures=True)
            deadline = time.monotonic() + PATIENCE
            while running and (left := deadline - time.monotonic()) > 0:
                ended = connection.wait([process.sentinel for process in running], left)
                running = [process for process in running if process.sentinel not in ended]
            end(running)


class _Pool(ProcessPoolExecutor):
    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future:
        """`ProcessPoolExecutor.submit`; raises BrokenProcessPool if it has to start a process and that fails.

        If another process is killed meanwhile, Python before 3.12 closes the new one's pipes or reuses their file
        descriptors.
        """
        try:
            return super().submit(fn, *args, **kwargs)
        except (OSError, ValueError) as error:
            if isinstance(error, ValueError) and not self._broken:
                raise
            raise BrokenProcessPool(f"a process could not start: {error}") from None


def _processes(made: ProcessPoolExecutor) -> list[BaseProcess]:
    return list((made._processes or {}).values())  # Python 3.14 has methods to end them


def end(processes: Iterable[BaseProcess]) -> None:
    """Kill worker processes and wait for them to exit."""
    workers = list(processes)
    for worker in workers:
        worker.kill()
    for worker in workers:
        worker.join()
