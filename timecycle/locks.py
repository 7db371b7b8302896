"""One process at a time in a folder: runs, results, prepared frames. Knows no torch.

<folder>/.lock     locked by the system as long as its holder lives; stays there
<folder>/.holder   who that is, JSON; removed when the folder is given back
"""

import errno
import os
import socket
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from filelock import BaseFileLock, FileLock, SoftFileLock, Timeout

from timecycle.errors import InputError, said
from timecycle.files import inside, is_alive, not_written, read_json, remove_leftovers, set_aside, write_json

LOCK = ".lock"
HOLDER = ".holder"
PATIENCE = 10.0  # seconds until the processes that a killed one had started let go of its lock
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of a file system, such as some NFS


class InUse(InputError):
    """Another process holds a folder."""


@contextmanager
def owned(folder: Path, *below: str) -> Iterator[None]:
    """Make a folder, and keep other processes that call this out of it until the block ends.

    What killed processes left half-written there, and in the folders `below` it, is removed. The system gives the
    folder back when its holder ends, however that happens. Where the file system has no locks, the lock is a file,
    which a killed process leaves behind: one of this machine is known by its number, and of another machine's process
    the sentence says which file to remove.

    Raises InUse naming the holder (host, process, since when), or InputError if the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = _acquired(folder)
    except OSError as error:
        raise not_written(folder, error) from None
    try:
        for path in (folder, *(folder / name for name in below)):
            remove_leftovers(path)
        _write_holder(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _acquired(folder: Path) -> BaseFileLock:
    file = inside(folder, LOCK)
    try:
        return _waited_for(FileLock(file), folder)
    except NotImplementedError:  # what FileLock makes of ENOSYS, in some versions
        pass
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    # The file that could not be locked is no sign that the folder is held.
    return _waited_for(SoftFileLock(file.with_name(f"{LOCK}.file")), folder, file=True)


def _waited_for(lock: BaseFileLock, folder: Path, file: bool = False) -> BaseFileLock:
    """The lock, taken. Of a holder that is dead a lock file is removed, and a lock of the system waited for."""
    try:
        lock.acquire(timeout=0)
        return lock
    except Timeout:
        holder = _holder(folder)
    if _is_dead(holder):
        if file:
            Path(lock.lock_file).unlink(missing_ok=True)
        with suppress(Timeout):
            lock.acquire(timeout=PATIENCE)
            return lock
    advice = f"; if that process has ended, remove {lock.lock_file}" if file else ""
    raise InUse(f"{folder} is in use by {_named(holder)}; expected one process at a time in a folder{advice}")


def _write_holder(folder: Path) -> None:
    file = inside(folder, HOLDER)
    if file.is_file() and not _read_holder(file):
        set_aside(file)
    since = datetime.now(UTC).isoformat(timespec="seconds")
    command = " ".join(sys.argv)[:200]
    write_json(file, {"host": socket.gethostname(), "pid": os.getpid(), "since": since, "command": command})


def _holder(folder: Path) -> dict[str, Any]:
    """What the holder wrote of itself; empty if it has not yet, or if that cannot be read."""
    for _ in range(5):  # it is written just after the lock was taken
        if (folder / HOLDER).exists():
            return _read_holder(folder / HOLDER)
        time.sleep(0.05)
    return {}


def _read_holder(file: Path) -> dict[str, Any]:
    """Its content; empty if it is nothing that a holder wrote."""
    with suppress(InputError):
        found = read_json(file, "a lock's holder")
        if isinstance(found, dict) and {"host", "pid", "since"} <= found.keys():
            return found
    return {}


def _is_dead(holder: dict[str, Any]) -> bool:
    pid = holder.get("pid")
    return holder.get("host") == socket.gethostname() and isinstance(pid, int) and pid > 0 and not is_alive(pid)


def _named(holder: dict[str, Any]) -> str:
    if not holder:
        return "another process"
    pid, host, since, command = (said(holder.get(name, "?")) for name in ("pid", "host", "since", "command"))
    return f"process {pid} on {host} since {since} ({command})"
