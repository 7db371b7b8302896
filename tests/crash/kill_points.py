"""Kills the current process at the n-th change of a folder, counted over all processes of a program.

Controlled by environment variables. CRASH_FOLDER: the folder whose changes are counted. CRASH_EVENTS: a file that lists
them, a record of RECORD bytes each. CRASH_KILL: "how:number", what happens at a change: "own" kills the process just
before it, "group" its process group, "later:SECONDS" kills it some time after the change began, perhaps during a write;
"remove:PATH" removes data, "SIGTERM" and the like send a signal. Imports the standard library only.
"""

import os
import shutil
import signal
import sys
from typing import Any

RECORD = 200
WRITING = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
PATHS = {  # event: (place of the path, place of the folder's descriptor) among its arguments
    "open": (0, None),
    "os.rename": (1, 3),
    "os.remove": (0, 1),
    "os.mkdir": (0, 2),
    "os.rmdir": (0, 1),
    "os.link": (1, 3),
    "os.symlink": (1, 2),
    "os.truncate": (0, None),
    "os.chmod": (0, 2),
    "os.utime": (0, 3),
}


def install() -> None:
    """Start to count, if the variables are set."""
    if "CRASH_FOLDER" not in os.environ:
        return
    folder = os.path.join(os.path.realpath(os.environ["CRASH_FOLDER"]), "")
    events = os.open(os.environ["CRASH_EVENTS"], os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    how, _, number = os.environ.get("CRASH_KILL", "none:0").rpartition(":")

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        path = _changed(event, arguments)
        if path is None or not path.startswith(folder):
            return
        line = f"{os.getpid()} {event} {path.removeprefix(folder)}".encode(errors="replace")
        os.write(events, line[: RECORD - 1].ljust(RECORD - 1) + b"\n")
        if how != "none" and os.fstat(events).st_size >= int(number) * RECORD:
            _happen(how)

    sys.addaudithook(hook)


def _changed(event: str, arguments: tuple[Any, ...]) -> str | None:
    """The path that an event is about to change, or None."""
    if event not in PATHS:
        return None
    place, descriptor = PATHS[event]
    path = arguments[place]
    if event == "open" and not (len(arguments) > 2 and arguments[2] & WRITING):
        return None
    if not isinstance(path, str | bytes | os.PathLike):
        return None
    path = os.fsdecode(path)
    if descriptor is not None and arguments[descriptor] not in (-1, None) and not os.path.isabs(path):
        path = os.path.join(os.readlink(f"/proc/self/fd/{arguments[descriptor]}"), path)
    return os.path.abspath(path)


_HAPPENED: list[str] = []


def _happen(how: str) -> None:
    kind, _, what = how.partition(":")
    if kind == "group":
        os.killpg(os.getpgrp(), signal.SIGKILL)
    elif kind == "own":
        os.kill(os.getpid(), signal.SIGKILL)
    elif _HAPPENED:
        return
    _HAPPENED.append(how)
    if kind == "later":
        # SIGALRM terminates the process by default.
        signal.setitimer(signal.ITIMER_REAL, float(what))
    elif kind == "remove":
        shutil.rmtree(what, ignore_errors=True)
    else:
        os.kill(os.getpid(), signal.Signals[kind])
