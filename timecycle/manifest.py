"""Hashes of the files that this program wrote, so that it never removes or replaces other files.

<folder>/.written/<sequence>.json    {"<sequence>/00000.png": ["<SHA-256>", ...], "overlays/<sequence>.mp4": [...], ...}
<folder>/.written/.tables.json       {"global_results-val.csv": ["<SHA-256>"], ...}: files directly in the folder
<folder>/.written/.report.json       {"report.html": ["<SHA-256>"], "report/<sequence>/00000-given.jpg": [...], ...}
<folder>/.written/.<name>.file.json  {"<name>": ["<SHA-256>"]}: a file named by the user

A file is this program's if it has one of the hashes recorded for its path. The hash of a new file is added before the
file is written and the old one's removed afterwards, so that files of a killed run are recognized too.
"""

import re
from collections.abc import Callable, Iterable, Mapping
from hashlib import sha256
from pathlib import Path

from timecycle.errors import InputError
from timecycle.files import component, hash_of, inside, read_json, write_bytes, write_json

NOTES = ".written"
OVERLAYS = "overlays"
PAGE, PICTURES = "report.html", "report"
"""The page of a results folder, and the folder of its pictures."""

Hashes = dict[str, list[str]]
"""SHA-256 by path below the folder; several while a file is being replaced."""


class Notes:
    """The recorded hashes of one kind of files in a folder. Raises InputError if the record is damaged.

    name: name of the record; allowed: tells whether a path below the folder, split into parts, is of this kind.
    """

    def __init__(self, folder: Path, name: str, allowed: Callable[[list[str]], bool]) -> None:
        self.folder = folder
        self._file = inside(folder, NOTES, f"{name}.json")
        self.hashes: Hashes = _read(self._file, allowed) if self._file.is_file() else {}

    def check_free(self, paths: Iterable[str]) -> None:
        """Raise InputError for a path where a file exists that is not as recorded."""
        for path in paths:
            file = inside(self.folder, *path.split("/"))
            if file.exists() and not _is_ours(file, self.hashes.get(path, [])):
                raise InputError(
                    f"{file} was not made by this program, or was changed since, and is not replaced; expected it "
                    "moved away, or another folder to write to"
                )

    def whole(self, paths: Iterable[str]) -> bool:
        """Whether the recorded files at these paths exist unchanged."""
        return all(_is_ours(inside(self.folder, *path.split("/")), self.hashes[path]) for path in paths)

    def expect(self, coming: Hashes) -> None:
        """Add the hashes of files that are about to be written."""
        self.settle({path: [*self.hashes.get(path, []), *coming.get(path, [])] for path in {**self.hashes, **coming}})

    def settle(self, written: Hashes) -> None:
        """Replace the record by these hashes."""
        self.hashes = {path: list(dict.fromkeys(found)) for path, found in written.items()}
        write_json(self._file, self.hashes)

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """Write files below the folder, or remove those that are None.

        Raises InputError, before any change, if one of them exists and was not written by this program.
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
        """Remove the recorded files that are unchanged, and folders that become empty."""
        for path, hashes in self.hashes.items():
            file = inside(self.folder, *path.split("/"))
            if _is_ours(file, hashes):
                file.unlink()
            for parent in [parent for parent in file.parents if self.folder in parent.parents]:
                if parent.is_dir() and not any(parent.iterdir()):
                    parent.rmdir()

    def forget(self) -> None:
        """Remove the record."""
        self._file.unlink(missing_ok=True)
        if self._file.parent.is_dir() and not any(self._file.parent.iterdir()):
            self._file.parent.rmdir()


class Manifest(Notes):
    """Files of one sequence in a results folder: masks, overlay images, an overlay video."""

    def __init__(self, folder: Path, sequence: str) -> None:
        self.sequence = component(sequence, folder)
        self.video = f"{OVERLAYS}/{sequence}.mp4"
        places = ([sequence], [OVERLAYS, sequence])
        super().__init__(folder, sequence, lambda parts: parts[:-1] in places or "/".join(parts) == self.video)

    def check_masks(self) -> None:
        """Raise InputError if the sequence's folder holds masks that are not as recorded."""
        folder = inside(self.folder, self.sequence, "00000.png").parent
        masks = sorted(folder.glob("*.png")) if folder.is_dir() else []
        self.check_free(f"{self.sequence}/{file.name}" for file in masks if not file.name.startswith("."))


class Tables(Notes):
    """Lists and tables directly in a folder, whose names match the regular expression `names`."""

    def __init__(self, folder: Path, names: str) -> None:
        super().__init__(folder, ".tables", lambda parts: re.fullmatch(names, "/".join(parts)) is not None)

    def write(self, files: Mapping[str, bytes | None]) -> None:
        """`Notes.write`, for names that are single path components."""
        super().write({component(name, self.folder): data for name, data in files.items()})


class Report(Notes):
    """The page of a results folder and its pictures."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, ".report", lambda parts: parts == [PAGE] or (parts[0] == PICTURES and len(parts) == 3))

    def replace(self, files: Mapping[str, bytes]) -> None:
        """`Notes.write`, and removal of the files of an earlier page that are not among these."""
        self.write({**dict.fromkeys(self.hashes), **files})


class OwnFile(Notes):
    """One file named by the user: created, or replaced if it is empty or as this program wrote it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        super().__init__(path.parent, f".{path.name}.file", lambda parts: parts == [path.name])

    def check(self) -> None:
        """Raise InputError if another file exists there."""
        self.check_free([self.path.name])

    def check_free(self, paths: Iterable[str]) -> None:
        """`Notes.check_free`, except that empty files, such as tempfile creates, may be replaced."""
        super().check_free(path for path in paths if not _is_empty(self.folder / path))

    def replace(self, data: bytes) -> None:
        """Write the file. Raises InputError if another file exists there, or writing fails."""
        self.write({self.path.name: data})


def noted_sequences(folder: Path) -> list[str]:
    """Names of the sequences with a manifest in a results folder."""
    notes = inside(folder, NOTES)
    files = sorted(notes.glob("*.json")) if notes.is_dir() else []
    return [file.stem for file in files if not file.name.startswith(".")]


def _is_ours(path: Path, hashes: list[str]) -> bool:
    """Whether `path` is a regular file, not a link, with one of these hashes."""
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
            raise InputError(
                f"{file} names {path[:100]!r}, which does not belong in it; expected the record as written"
            )
    return content
