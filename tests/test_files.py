"""Atomic writes, names of folders, paths without links, JSON that is read or refused."""

import os
import subprocess
from pathlib import Path

import pytest

from tests.assertions import raises_input_error
from timecycle import files
from timecycle.errors import InputError
from timecycle.files import component, growing, inside, partial_path, read_json, set_aside, write_bytes, write_json

DEAD = 2**22 + 1  # larger than any PID of Linux


@pytest.mark.parametrize("name", ["dog", "a b", "猫", "dog-2.mp4", "x" * 200, "...dog"[3:], "~", "$HOME", "**", "con"])
def test_names_of_folders_are_accepted(name):
    assert component(name, "list.txt") == name


HOSTILE = ["", " ", ".", "..", ".hidden", "a/b", "../a", "/a", "a\\b", "a\0b", "a\nb", "x" * 201, "猫" * 67]
HOSTILE += ["overlays", "Overlays", "results.json", "\u202egpj.exe", "\udcff"]


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_names_are_refused(name):
    with pytest.raises(
        InputError, match=r"^list.txt line 3: the name .* expected the name of one folder, of at most 200"
    ):
        component(name, "list.txt line 3")


def test_links_below_a_folder_are_refused(tmp_path):
    (tmp_path / "real").mkdir()
    (tmp_path / "named").symlink_to(tmp_path / "real")
    folder = tmp_path / "named"  # the given folder may be a link
    assert inside(folder, "a", "b") == folder / "a" / "b"
    (folder / "a").symlink_to(tmp_path)
    (folder / "dangling").symlink_to(tmp_path / "nothing")
    (folder / "file").write_text("x")
    for names, said in ((("a", "b"), "a is a symbolic link"), (("dangling",), "is a symbolic link")):
        with pytest.raises(InputError, match=said):
            inside(folder, *names)
    with pytest.raises(InputError, match="file is not a folder"):
        inside(folder, "file", "b")


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"", "damaged or not JSON"),
        (b"\0\0\0", "damaged or not JSON"),
        (b'{"a": 1', "damaged or not JSON"),
        (b"\xff{}", "damaged or not JSON"),
        (b"[" * 200_000, "nested too deep"),
        (b"9" * 5000, "damaged or not JSON"),
        (b"[NaN]", "a number is NaN"),
        (b"[1e999]", "a number is 1e999"),
    ],
)
def test_damaged_json_is_refused(tmp_path, data, said):
    path = tmp_path / "x.json"
    path.write_bytes(data)
    with raises_input_error(match=rf"x.json is .*{said}.*; expected settings"):
        read_json(path, "settings")
    os.mkfifo(tmp_path / "pipe")  # reading it would block
    for odd, what in (
        (tmp_path / "none.json", "does not exist"),
        (tmp_path, "is a folder"),
        (tmp_path / "pipe", "is no file"),
    ):
        with pytest.raises(InputError, match=what):
            read_json(odd, "settings")


def test_json_is_read_as_it_was_written(tmp_path):
    content = {"a": [1, 2.5, None, "é"], "b": {}}
    write_json(tmp_path / "new" / "x.json", content)
    assert read_json(tmp_path / "new" / "x.json", "x") == content


def test_a_file_is_written_whole_or_not_at_all(tmp_path):
    path = tmp_path / "x"
    write_bytes(path, b"before")

    def half(file: Path) -> None:
        file.write_bytes(b"half")
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError), growing(path) as partial:
        half(partial)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"before"
    with growing(path) as partial:
        partial.write_bytes(b"after")
        assert path.read_bytes() == b"before"
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == b"after"


def test_file_and_folder_are_synced(tmp_path, monkeypatch):
    steps = []
    monkeypatch.setattr(files, "synced", lambda path: steps.append((path, (tmp_path / "x").exists())))
    write_bytes(tmp_path / "x", b"data")
    assert steps == [(partial_path(tmp_path / "x"), False), (tmp_path, True)]


def test_a_file_is_never_written_through_a_link(tmp_path):
    (tmp_path / "other").write_text("mine")
    for link in (tmp_path / "x", partial_path(tmp_path / "x")):
        link.symlink_to(tmp_path / "other")
    write_bytes(tmp_path / "x", b"data")
    assert (tmp_path / "other").read_text() == "mine"
    assert (tmp_path / "x").read_bytes() == b"data"
    assert not (tmp_path / "x").is_symlink()


def test_partial_files_of_killed_processes_are_removed_by_the_next_write(tmp_path):
    living = subprocess.Popen(["sleep", "60"])
    try:
        kept = [f".x.{living.pid}.partial", f".y.{DEAD}.partial", "x.partial", ".x.partial"]
        for name in (*kept, f".x.{DEAD}.partial"):
            (tmp_path / name).write_text("half")
        write_bytes(tmp_path / "x", b"data")
        assert {path.name for path in tmp_path.iterdir()} == {"x", *kept}
    finally:
        living.kill()
        living.wait()


def full(path: Path) -> None:
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("where", ["a file for a folder", "a folder for the file", "a full disk"])
def test_failed_writes_are_refused_and_leave_nothing(tmp_path, monkeypatch, where):
    path = tmp_path / "x"
    if where == "a file for a folder":
        path.write_text("mine")
        path = path / "y"
    elif where == "a folder for the file":
        (path / "mine").mkdir(parents=True)
    else:
        monkeypatch.setattr(files, "synced", full)
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(InputError, match=rf"^{path} cannot be written \([^()]+\); expected a place that can, with"):
        write_bytes(path, b"data")
    assert sorted(tmp_path.rglob("*")) == before


def test_impossible_pids_are_not_alive():
    assert files.is_alive(os.getpid())
    assert not any(map(files.is_alive, (DEAD, 10**30)))


def test_partial_paths_are_hidden_and_have_the_pid(tmp_path: Path):
    assert partial_path(tmp_path / "x.png") == tmp_path / f".x.png.{os.getpid()}.partial"


def test_set_aside_replaces_no_file(tmp_path):
    names = []
    for content in ("first", "second", "third"):
        (tmp_path / "x.pt").write_text(content)
        names.append(set_aside(tmp_path / "x.pt").name)
    assert names == ["x.pt.set-aside", "x.pt.set-aside-2", "x.pt.set-aside-3"]
    assert [(tmp_path / name).read_text() for name in names] == ["first", "second", "third"]
