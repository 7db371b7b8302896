"""A fork of the test's process, which may end itself in the middle of its work as if it was killed."""

import os
import signal
import time
from collections.abc import Callable

import cv2

LIMIT = 60  # seconds


def forked(work: Callable[[], object]) -> int:
    """Exit status of a fork that calls `work`: 0 if that returns, 1 if it raises, minus a signal that killed it.

    OpenCV's threads end before: a lock that one of them holds at the fork would stay locked in the new process.
    """
    threads = cv2.getNumThreads()
    cv2.setNumThreads(0)
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    cv2.setNumThreads(threads)
    deadline = time.monotonic() + LIMIT
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.kill(child, signal.SIGKILL)
        time.sleep(0.005)
    return os.waitstatus_to_exitcode(ended[1])
