"""Which files of a results folder this program wrote, so that it never removes or replaces another.

<folder>/.written/<sequence>.json    {"<sequence>/00000.png": ["<SHA-256>", ...], "overlays/<sequence>.mp4": [...], ...}

A file is this program's if its bytes have one of the hashes noted for its name. What is about to be written is noted
before it gets there, beside what is still there, so that a killed run's files are known too.
"""

import hashlib
from collections.abc import Iterable
from pathlib import Path

from timecycle.errors import InputError
from timecycle.files import component, inside, read_json, write_json

NOTES = ".written"
OVERLAYS = "overlays"

Hashes = dict[str, list[str]]
"""SHA-256 by the path below the results folder, several while files are being replaced."""


class Manifest:
    """What was written for one sequence in a results folder: masks, pictures, a video.

    Raises InputError if the notes are damaged, or of files that are not the sequence's.
    """

    def __init__(self, folder: Path, sequence: str) -> None:
        self.folder, self.sequence = folder, component(sequence, folder)
        self._file = inside(folder, NOTES, f"{sequence}.json")
        self.hashes: Hashes = self._read() if self._file.is_file() else {}

    def _read(self) -> Hashes:
        hashes = as_hashes(read_json(self._file, "hashes of files"), self._file)
        for path in hashes:
            *folders, name = path.split("/")
            if folders not in ([self.sequence], [OVERLAYS, self.sequence]) and path != self.video:
                raise InputError(f"{self._file} names {path!r}; expected files of {self.sequence}")
            component(name, self._file)
        return hashes

    @property
    def video(self) -> str:
        """The path of the sequence's overlay video below the results folder."""
        return f"{OVERLAYS}/{self.sequence}.mp4"

    def check_masks(self) -> None:
        """Raise InputError if the sequence's folder holds masks that were not noted."""
        folder = inside(self.folder, self.sequence, "00000.png").parent
        masks = sorted(folder.glob("*.png")) if folder.is_dir() else []
        self.check_free(f"{self.sequence}/{file.name}" for file in masks if not file.name.startswith("."))

    def check_free(self, paths: Iterable[str]) -> None:
        """Raise InputError for a path below the results folder that is taken by something else than what was noted."""
        check_free(self.folder, paths, self.hashes)

    def whole(self) -> bool:
        """Whether every file that was noted is there, as it was written."""
        return bool(self.hashes) and all(
            is_ours(inside(self.folder, *path.split("/")), hashes) for path, hashes in self.hashes.items()
        )

    def expect(self, coming: Hashes) -> None:
        """Note files that are about to be written, beside those that are there."""
        self._write({path: [*self.hashes.get(path, []), *coming.get(path, [])] for path in {**self.hashes, **coming}})

    def settle(self, written: Hashes) -> None:
        """Note that these files, and no others, are there."""
        self._write(written)

    def _write(self, hashes: Hashes) -> None:
        self.hashes = {path: list(dict.fromkeys(found)) for path, found in hashes.items()}
        write_json(self._file, self.hashes)

    def remove_files(self) -> None:
        """Remove the files that are as they were written, and the folders that this leaves empty; no others."""
        for path, hashes in self.hashes.items():
            file = inside(self.folder, *path.split("/"))
            if is_ours(file, hashes):
                file.unlink()
        for names in ([self.sequence], [OVERLAYS, self.sequence], [OVERLAYS]):
            folder = inside(self.folder, *names)
            if folder.is_dir() and not any(folder.iterdir()):
                folder.rmdir()

    def forget(self) -> None:
        """Remove the notes."""
        self._file.unlink(missing_ok=True)
        if self._file.parent.is_dir() and not any(self._file.parent.iterdir()):
            self._file.parent.rmdir()


def manifests(folder: Path) -> list[Manifest]:
    """Those of all sequences of a results folder. Raises InputError if one is damaged."""
    notes = inside(folder, NOTES)
    names = sorted(file.stem for file in notes.iterdir() if file.suffix == ".json") if notes.is_dir() else []
    return [Manifest(folder, name) for name in names]


def hash_of(path: Path) -> str:
    """SHA-256 of a file."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_ours(path: Path, hashes: list[str]) -> bool:
    """Whether a file is there with one of these hashes; a link is not."""
    return path.is_file() and not path.is_symlink() and hash_of(path) in hashes


def check_free(folder: Path, paths: Iterable[str], hashes: Hashes) -> None:
    """Raise InputError for a path below a folder where something lies that has none of the hashes of its name."""
    for path in paths:
        file = inside(folder, *path.split("/"))
        if file.exists() and not is_ours(file, hashes.get(path, [])):
            raise InputError(
                f"{file} was not made by this program, or was changed since, and is not replaced; expected it moved "
                "away, or another --save_path"
            )


def as_hashes(content: object, source: Path) -> Hashes:
    """JSON as hashes by path. Raises InputError for anything else."""
    if isinstance(content, dict) and all(
        isinstance(hashes, list) and all(isinstance(found, str) for found in hashes) for hashes in content.values()
    ):
        return content
    raise InputError(f"{source} is damaged; expected hashes of files")
