"""Locks of folders: one process at a time, also after a process was killed."""

import errno
import json
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

import pytest

from timecycle.errors import InputError
from timecycle.locks import HOLDER, LOCK, owned

ROOT = Path(__file__).parents[1]
HOLD = """
import os, sys, time
from pathlib import Path
from timecycle.locks import owned
with owned(Path(sys.argv[1])):
    if sys.argv[2] == "fork" and os.fork() == 0:
        time.sleep(float(sys.argv[3]))
        os._exit(0)
    print("held", flush=True)
    time.sleep(100)
"""


@contextmanager
def held(folder: Path, *arguments: object):
    """Another process that holds the folder; it is killed at the end."""
    command = [sys.executable, "-c", HOLD, str(folder), *map(str, arguments or ("", ""))]
    with subprocess.Popen(command, env={**os.environ, "PYTHONPATH": str(ROOT)}, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"
        try:
            yield process
        finally:
            process.kill()


def refusal(folder: Path) -> str:
    """The error message of `owned`."""
    with pytest.raises(InputError) as refused, owned(folder):
        pass
    return str(refused.value)


def test_the_refusal_of_a_second_process_names_the_holder(tmp_path):
    with held(tmp_path / "run") as process:
        said = refusal(tmp_path / "run")
        assert re.search(rf"run is in use by process {process.pid} on \S+ since 20\d\d-", said)
        assert "expected one process at a time" in said
        process.send_signal(signal.SIGKILL)
        process.wait()
        with owned(tmp_path / "run"):
            assert json.loads((tmp_path / "run" / HOLDER).read_text())["pid"] == os.getpid()
    assert not (tmp_path / "run" / HOLDER).exists()


def test_a_holder_with_a_damaged_holder_file_is_called_another_process(tmp_path):
    with held(tmp_path):
        (tmp_path / HOLDER).write_bytes(b"\0\0")
        assert "in use by another process" in refusal(tmp_path)


def test_children_of_a_killed_process_do_not_keep_the_folder(tmp_path):
    with held(tmp_path, "fork", 3) as process:
        process.kill()
        process.wait()
        start = time.monotonic()
        with owned(tmp_path):
            assert time.monotonic() - start < 9


@pytest.fixture
def no_locks(monkeypatch):
    """A file system without locks."""

    def flock(*_):
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", flock)


def test_without_flock_a_lock_file_is_used(no_locks, tmp_path):
    with owned(tmp_path):
        said = refusal(tmp_path)
    assert f"in use by process {os.getpid()} on" in said
    assert f"if that process has ended, remove {tmp_path / LOCK}.file" in said
    with owned(tmp_path):
        pass


@pytest.mark.parametrize("left", ["as filelock writes it", "empty"])
def test_a_lock_file_of_a_dead_process_is_removed(no_locks, tmp_path, left):
    with held_by_dead(tmp_path, left == "empty") as mine, owned(tmp_path):
        assert json.loads((tmp_path / HOLDER).read_text())["pid"] == mine["pid"]


def test_a_lock_file_of_another_machine_is_kept(no_locks, tmp_path):
    with held_by_dead(tmp_path, True) as mine:
        (tmp_path / HOLDER).write_text(json.dumps(mine | {"host": "elsewhere"}))
        said = refusal(tmp_path)
    assert f"in use by process {mine['pid']} on elsewhere since" in said
    assert "if that process has ended, remove" in said


@contextmanager
def held_by_dead(folder: Path, empty: bool):
    """Leave the lock file of a dead process in a folder; gives the content of a holder file of this process."""
    dead = subprocess.Popen(["true"])
    dead.wait()
    with owned(folder):
        mine = json.loads((folder / HOLDER).read_text())
        lock = (folder / f"{LOCK}.file").read_bytes().replace(str(os.getpid()).encode(), str(dead.pid).encode())
    (folder / HOLDER).write_text(json.dumps(mine | {"pid": dead.pid}))
    (folder / f"{LOCK}.file").write_bytes(b"" if empty else lock)
    yield mine


def test_partial_files_of_dead_processes_are_removed_and_those_of_living_ones_kept(tmp_path):
    dead = subprocess.Popen(["true"])
    dead.wait()
    for name in (f".a.json.{dead.pid}.partial", f".b.{dead.pid}.partial/masks/x.png", f".c.{os.getppid()}.partial"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    (tmp_path / "below").mkdir()
    (tmp_path / "below" / f".d.{dead.pid}.partial").write_text("x")
    (tmp_path / "mine.partial").write_text("x")
    (tmp_path / f".link.{dead.pid}.partial").symlink_to(tmp_path / "mine.partial")
    with owned(tmp_path, "below"):
        left = {path.name for path in tmp_path.rglob("*")}
    assert left == {LOCK, HOLDER, "below", "mine.partial", f".c.{os.getppid()}.partial"}


@pytest.mark.parametrize("what", ["file", "below a file", "link in the lock's place"])
def test_files_and_links_in_the_way_are_refused(tmp_path, what):
    folder = tmp_path / "x"
    if what == "link in the lock's place":
        folder.mkdir()
        (tmp_path / "other").write_text("mine")
        (folder / LOCK).symlink_to(tmp_path / "other")
    else:
        folder.write_text("mine")
        folder = folder / "y" if what == "below a file" else folder
    with pytest.raises(InputError, match=f"{tmp_path}/x"), owned(folder):
        pass
    assert (tmp_path / "other" if "link" in what else tmp_path / "x").read_text() == "mine"


def test_other_files_of_the_same_names_are_kept(tmp_path):
    (tmp_path / HOLDER).write_text("mine")
    (tmp_path / LOCK).write_text("mine too")
    for _ in range(2):
        with owned(tmp_path):
            assert json.loads((tmp_path / HOLDER).read_text())["pid"] == os.getpid()
    assert (tmp_path / f"{HOLDER}.set-aside").read_text() == "mine"
    assert (tmp_path / LOCK).read_text() == "mine too"
    assert not (tmp_path / f"{HOLDER}.set-aside-2").exists()
    (tmp_path / "other" / HOLDER).mkdir(parents=True)
    assert "cannot be written" in refusal(tmp_path / "other")
    assert (tmp_path / "other" / HOLDER).is_dir()


def test_control_characters_in_a_holder_file_are_escaped(tmp_path):
    with held(tmp_path):
        (tmp_path / HOLDER).write_text(
            json.dumps({"host": "a\x1b[31m\nb", "pid": 1, "since": "now", "command": "c" * 999})
        )
        said = refusal(tmp_path)
    assert r"process 1 on a\x1b[31m\nb since now (ccc" in said
    assert said.isprintable()
    assert len(said) < 600
