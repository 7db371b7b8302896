"""Locks of folders that one process at a time may write to: runs, results, prepared frames. Does not import torch.

<folder>/.lock     locked by the operating system while the holder lives; never removed
<folder>/.holder   JSON that describes the holder; removed when the lock is released
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
from timecycle.files import inside, is_alive, read_json, remove_leftovers, set_aside, write_json, writing

LOCK = ".lock"
HOLDER = ".holder"
PATIENCE = 10.0  # seconds for the children of a killed process, which inherited its lock, to exit
_WITHOUT_LOCKS = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)  # of file systems such as some NFS


class InUse(InputError):
    """Another process holds the lock of a folder."""


@contextmanager
def owned(folder: Path, *below: str) -> Iterator[None]:
    """Create a folder and hold its lock until the block ends.

    Partial files of dead processes in it and in the folders `below` it are removed. The operating system releases the
    lock when the holder exits or is killed. File systems without locks get a lock file, which a killed process leaves
    behind: it is removed if the process was on this machine, else the error says which file to remove.

    Raises InUse naming the holder (host, process id, start), or InputError if the folder cannot be written.
    """
    with writing(folder):
        folder.mkdir(parents=True, exist_ok=True)
        lock = _lock_of(folder)
    try:
        for path in (folder, *(folder / name for name in below)):
            remove_leftovers(path)
        _write_holder(folder)
        yield
    finally:
        with suppress(OSError):
            (folder / HOLDER).unlink(missing_ok=True)
        lock.release()


def _lock_of(folder: Path) -> BaseFileLock:
    file = inside(folder, LOCK)
    try:
        return _acquire(FileLock(file), folder)
    except NotImplementedError:  # raised by some versions of FileLock for ENOSYS
        pass
    except OSError as error:
        if error.errno not in _WITHOUT_LOCKS:
            raise
    # Under another name, since the existence of LOCK does not mean that the folder is locked.
    return _acquire(SoftFileLock(file.with_name(f"{LOCK}.file")), folder, file=True)


def _acquire(lock: BaseFileLock, folder: Path, file: bool = False) -> BaseFileLock:
    """Acquire a lock. If its holder is dead, remove a lock file, or wait for the system's lock to be released."""
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
    """The content of HOLDER; empty if it does not exist or cannot be read."""
    for _ in range(5):  # it is written shortly after the lock is acquired
        if (folder / HOLDER).exists():
            return _read_holder(folder / HOLDER)
        time.sleep(0.05)
    return {}


def _read_holder(file: Path) -> dict[str, Any]:
    """The content of an existing HOLDER; empty if it is damaged."""
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
