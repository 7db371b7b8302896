"""Comparison of folders: by bytes, except for the times, hosts and process ids that some files contain."""

import hashlib
import json
import os
import re
from pathlib import Path
from typing import Any

import torch

Tree = dict[str, Any]
PARTIAL = re.compile(r"\.partial($|/)")
BY_NATURE = {"seconds", "versions", "peak_memory_mb", "command", "since"}
"""Fields of JSON that hold times and machines."""
TIMES = re.compile(rb"<dt>time</dt><dd>[^<]*|<h3>Time</h3>.*?<h3>Settings</h3>", re.DOTALL)
"""In a page, the fact at its top, and the table of stages with the facts about the machine that follow it."""
LEFT_OUT = re.compile(r"(^|/)(tensorboard/.*|\.lock|\.lock\.file)$")


def results(folder: Path) -> Tree:
    """A program's output by path: bytes, JSON without times and hosts, a link's target, None for a folder.

    The path of the folder itself is replaced in file contents.
    """
    found: Tree = {}
    for path in _below(folder):
        name = str(path.relative_to(folder))
        if LEFT_OUT.search(name):
            continue
        if path.is_symlink():
            found[name] = f"-> {os.readlink(path)}"
        elif path.is_dir():
            found[name] = None
        elif path.suffix == ".json" and path.name != ".prepared.json":
            content = json.loads(path.read_bytes())
            found[name] = _noted(content, folder / "out") if ".written/" in name else _plain(content, path)
        elif path.name == "report.html" and path.with_name("settings.json").is_file():
            # The page of a training run names the processes that worked on it, which a killed run has more of.
            found[name] = path.read_bytes().endswith(b"</html>")
        elif path.suffix == ".html":
            found[name] = TIMES.sub(b"", _placeless(path, folder))
        elif path.suffix == ".pt":
            found[name] = _unpickled(torch.load(path, weights_only=True))
        elif path.suffix == ".safetensors":
            found[name] = _by_name(path.read_bytes())
        else:
            found[name] = _placeless(path, folder)
    return found


def _placeless(path: Path, folder: Path) -> bytes:
    return path.read_bytes().replace(os.fsencode(folder), b"FOLDER")


def _noted(content: dict[str, list[str]], out: Path) -> dict[str, Any]:
    """Whether the recorded hashes are those of the files; the hashes depend on paths in the files."""
    return {
        name: (out / name).is_file() and hashes == [hashlib.sha256((out / name).read_bytes()).hexdigest()]
        for name, hashes in content.items()
    }


def _plain(content: Any, path: Path) -> Any:
    if path.name == "settings.json":
        return content["settings"]
    if isinstance(content, dict):
        return {name: _plain(value, path) for name, value in content.items() if name not in BY_NATURE}
    return content


def _unpickled(content: Any) -> Any:
    """A checkpoint's content; the bytes of a pickle also depend on which equal strings are one object."""
    if isinstance(content, torch.Tensor):
        data = content.contiguous().view(-1).view(torch.uint8).numpy().tobytes()
        return str(content.dtype), tuple(content.shape), data
    if isinstance(content, dict):
        return {name: _unpickled(value) for name, value in content.items()}
    if isinstance(content, list | tuple):
        return [_unpickled(value) for value in content]
    return content


def _by_name(data: bytes) -> tuple[Any, bytes]:
    """A safetensors file with its header parsed: the order of its metadata differs from run to run."""
    length = int.from_bytes(data[:8], "little")
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def partial(folder: Path) -> list[str]:
    """Names of temporary files that were not renamed."""
    return [name for path in _below(folder) if PARTIAL.search(name := str(path.relative_to(folder)))]


def difference(found: Tree, expected: Tree) -> str | None:
    """The first few differences as a line, or None."""
    said = [f"{name} is missing" for name in expected if name not in found]
    said += [f"{name} is there too" for name in found if name not in expected]
    for name in expected:
        if name in found and found[name] != expected[name]:
            said.append(f"{name} differs ({_shown(_apart(found[name], expected[name]))})")
    return "; ".join(said[:4]) or None


def _shown(value: Any) -> str:
    if isinstance(value, bytes):
        return f"{len(value)} bytes {hashlib.sha256(value).hexdigest()[:6]}"
    return repr(value)[:80]


def _apart(found: Any, expected: Any) -> Any:
    """The entries of a JSON object that differ from another's."""
    if not isinstance(found, dict) or not isinstance(expected, dict):
        return found
    return {name: value for name, value in found.items() if name not in expected or expected[name] != value}


def snapshot(folder: Path, without: Path | None = None) -> Tree:
    """Mode, modification time and content of every file, except in one folder."""
    found: Tree = {}
    for path in _below(folder):
        if without is not None and (path == without or without in path.parents):
            continue
        status = path.lstat()
        content: Any = None
        if path.is_symlink():
            content = os.readlink(path)
        elif path.is_file():
            content = path.read_bytes()
        # A folder's modification time tells whether entries changed; ignored for the parent of the excluded folder.
        time = 0 if without is not None and path == without.parent else status.st_mtime_ns
        found[str(path.relative_to(folder))] = (status.st_mode, time, content)
    return found


def changes(found: Tree, expected: Tree) -> str | None:
    """The first few changes since an earlier snapshot as a line, or None."""
    said = [f"{name} was removed" for name in expected if name not in found]
    said += [f"{name} was made" for name in found if name not in expected]
    said += [f"{name} was changed" for name in expected if name in found and found[name] != expected[name]]
    return "; ".join(said[:4]) or None


def _below(folder: Path) -> list[Path]:
    """All paths below a folder, sorted; links are not followed."""
    found = []
    for root, folders, files in os.walk(folder):
        found += [Path(root, name) for name in (*folders, *files)]
    return sorted(found)
