"""Which files of a folder this program wrote, so that it never removes or replaces another.

<folder>/.written/<sequence>.json    {"<sequence>/00000.png": ["<SHA-256>", ...], "overlays/<sequence>.mp4": [...], ...}
<folder>/.written/.tables.json       {"global_results-val.csv": ["<SHA-256>"], ...}: of the folder itself
<folder>/.written/.<name>.file.json  {"<name>": ["<SHA-256>"]}: of a file that the user named

A file is this program's if its bytes have one of the hashes noted for its name. What is about to be written is noted
before it gets there, beside what is still there, so that a killed run's files are known too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from timecycle.errors import InputError
from timecycle.files import component, hash_of, inside, read_json, write_bytes, write_json

NOTES = ".written"
OVERLAYS = "overlays"

Hashes = dict[str, list[str]]
"""SHA-256 by the path below the results folder, several while files are being replaced."""


class Notes:
    """What was written of one kind in a folder. Raises InputError if the notes are damaged.

    name: of the notes; allowed: whether a path below the folder is of this kind.
    """

    def __init__(self, folder: Path, name: str, allowed: Callable[[list[str]], bool]) -> None:
        self.folder = folder
        self._file = inside(folder, NOTES, f"{name}.json")
        self.hashes: Hashes = _read(self._file, allowed) if self._file.is_file() else {}

    def check_free(self, paths: Iterable[str]) -> None:
        """Raise InputError for a path below the folder where something else lies than what was noted."""
        for path in paths:
            file = inside(self.folder, *path.split("/"))
            if file.exists() and not _is_ours(file, self.hashes.get(path, [])):
                raise InputError(
                    f"{file} was not made by this program, or was changed since, and is not replaced; expected it "
                    "moved away, or another folder to write to"
                )

    def whole(self, paths: Iterable[str]) -> bool:
        """Whether files that were noted are there, as they were written."""
        return all(_is_ours(inside(self.folder, *path.split("/")), self.hashes[path]) for path in paths)

    def expect(self, coming: Hashes) -> None:
        """Note files that are about to be written, beside those that are there."""
        self.settle({path: [*self.hashes.get(path, []), *coming.get(path, [])] for path in {**self.hashes, **coming}})

    def settle(self, written: Hashes) -> None:
        """Note that these files, and no others, are there."""
        self.hashes = {path: list(dict.fromkeys(found)) for path, found in written.items()}
        write_json(self._file, self.hashes)

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """Write files below the folder, or remove those that are None.

        Raises InputError, and does neither, if one is there that has another origin.
        """
        self.check_free(files)
        self.expect({name: [sha256(data).hexdigest()] for name, data in files.items() if data is not None})
        for name, data in files.items():
            if data is None:
                (self.folder / name).unlink(missing_ok=True)
            else:
                write_bytes(self.folder / name, data)
        self.settle({name: hashes[-1:] for name, hashes in self.hashes.items() if files.get(name, b"") is not None})

    def remove_files(self) -> None:
        """Remove the files that are as they were written, and the folders that this leaves empty; no others."""
        for path, hashes in self.hashes.items():
            file = inside(self.folder, *path.split("/"))
            if _is_ours(file, hashes):
                file.unlink()
            for parent in [parent for parent in file.parents if self.folder in parent.parents]:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def forget(self) -> None:
        """Remove the notes."""
        self._file.unlink(missing_ok=True)
        if self._file.parent.is_dir() and not any(self._file.parent.iterdir()):
            self._file.parent.rmdir()


class Manifest(Notes):
    """What was written for one sequence in a results folder: masks, pictures, a video."""

    def __init__(self, folder: Path, sequence: str) -> None:
        self.sequence = component(sequence, folder)
        self.video = f"{OVERLAYS}/{sequence}.mp4"
        places = ([sequence], [OVERLAYS, sequence])
        super().__init__(folder, sequence, lambda parts: parts[:-1] in places or "/".join(parts) == self.video)

    def check_masks(self) -> None:
        """Raise InputError if the sequence's folder holds masks that were not noted."""
        folder = inside(self.folder, self.sequence, "00000.png").parent
        masks = sorted(folder.glob("*.png")) if folder.is_dir() else []
        self.check_free(f"{self.sequence}/{file.name}" for file in masks if not file.name.startswith("."))


class Tables(Notes):
    """What was written in a folder itself: lists and tables, whose names match a pattern."""

    def __init__(self, folder: Path, names: str) -> None:
        super().__init__(folder, ".tables", lambda parts: re.fullmatch(names, "/".join(parts)) is not None)

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """As of all notes, with names that are single parts of a path."""
        super().write({component(name, self.folder): data for name, data in files.items()})


class OwnFile(Notes):
    """One file that the user named, noted beside it: made, or replaced if it is empty or as this program wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path.parent, f".{path.name}.file", lambda parts: parts == [path.name])

    def check(self) -> None:
        """Raise InputError if something else is there."""
        self.check_free([self.path.name])

    def check_free(self, paths: Iterable[str]) -> None:
        """As of all notes, but for a file that holds nothing, as tempfile makes them."""
        super().check_free(path for path in paths if not _is_empty(self.folder / path))

    def replace(self, data: bytes) -> None:
        """Write the file. Raises InputError if something else is there, or it cannot be written."""
        self.write({self.path.name: data})


def noted_sequences(folder: Path) -> list[str]:
    """The names of all sequences of which a results folder has a manifest."""
    notes = inside(folder, NOTES)
    files = sorted(notes.glob("*.json")) if notes.is_dir() else []
    return [file.stem for file in files if not file.name.startswith(".")]


def _is_ours(path: Path, hashes: list[str]) -> bool:
    """Whether a file is there with one of these hashes; a link is not."""
    return bool(hashes) and path.is_file() and not path.is_symlink() and hash_of(path) in hashes


def _is_empty(path: Path) -> bool:
    return path.is_file() and not path.is_symlink() and not path.stat().st_size


def _read(file: Path, allowed: Callable[[list[str]], bool]) -> Hashes:
    content = read_json(file, "hashes of files")
    if not isinstance(content, dict) or not all(
        isinstance(hashes, list) and all(isinstance(found, str) for found in hashes) for hashes in content.values()
    ):
        raise InputError(f"{file} is damaged; expected hashes of files")
    for path in content:
        parts = path.split("/")
        if parts[-1] in ("", ".", "..") or not allowed(parts):
            raise InputError(f"{file} names {path[:100]!r}, which it is not there for; expected it as it was written")
    return content
