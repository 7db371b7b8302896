"""Processes that work for another one: they leave signals to it, and end when it does."""

import multiprocessing
import os
import signal
import threading


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
