"""The weights in a run's folder: the newest few checkpoints, the best one, the encoder; whatever else is there stays.

checkpoint_<step>.pt    latest.pt points to the newest, best.pt is the one of the best evaluation
encoder.safetensors     at the end
.written/.run.json      hashes of these, see `timecycle.manifest`
"""

import os
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from timecycle.errors import InputError
from timecycle.files import growing, hash_of, inside, set_aside
from timecycle.manifest import NOTES, Hashes, Notes

NAME = re.compile(r"checkpoint_(\d+)\.pt")
LATEST, BEST, ENCODER = "latest.pt", "best.pt", "encoder.safetensors"
_NOTED = ".run"


class RunFiles(Notes):
    """Those of a folder. What is in the way, and is not as a run wrote it, gets another name, and a line says which."""

    def __init__(self, folder: Path) -> None:
        notes = inside(folder, NOTES, f"{_NOTED}.json")
        try:
            super().__init__(folder, _NOTED, _is_noted)
        except InputError as damage:
            print(f"{damage}; it is now {set_aside(notes).name}, and what it names is not removed any more", flush=True)
            super().__init__(folder, _NOTED, _is_noted)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Where to write one of them: it gets its place as those of `timecycle.files.growing`, noted before."""
        self.make_room(name)
        with growing(self.folder / name) as partial:
            yield partial
            if noted := not partial.is_symlink():
                self.expect({name: [hash_of(partial)]})
        if noted:
            self._note_those_there({**self.hashes, name: self.hashes[name][-1:]})

    def make_room(self, name: str) -> None:
        """Set aside what is there under a name, unless it is a run's."""
        path = self.folder / name
        if os.path.lexists(path) and not self._owns(path):
            _set_aside(path)

    def keep_newest(self, keep: int) -> None:
        """Point latest.pt at the newest checkpoint, and remove all but the newest `keep`, if there are any."""
        found = [path for _, path in numbered(self.folder)]
        for path in found[-1:]:
            with self.writing(LATEST) as partial:
                try:
                    partial.symlink_to(path.name)
                except OSError:  # a file system without links
                    _copy(path, partial)
        self._remove(path for path in found[:-keep] if path.name in self.hashes)

    def keep_best(self, path: Path) -> None:
        """Let best.pt be this checkpoint also after its own name is gone. Raises InputError if it cannot be written."""
        with self.writing(BEST) as partial:
            _copy(path, partial)

    def clear_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; what is not as a run wrote it is set aside."""
        self._remove((path for number, path in numbered(self.folder) if number > step), _set_aside)

    def _remove(self, paths: Iterable[Path], otherwise: Callable[[Path], None] | None = None) -> None:
        """Remove those that are as they were written. Raises InputError if that fails."""
        gone = list(paths)
        for path in gone:
            try:
                if self._owns(path):
                    path.unlink()
                elif otherwise:
                    otherwise(path)
            except OSError as error:
                raise InputError(
                    f"{path} cannot be removed ({error.strerror}); expected a file of this run's"
                ) from None
        if gone:
            self._note_those_there(
                {name: hashes for name, hashes in self.hashes.items() if self.folder / name not in gone}
            )

    def _note_those_there(self, hashes: Hashes) -> None:
        """Note these, but for files that a process which was killed had not put in place, or had removed."""
        self.settle({name: found for name, found in hashes.items() if (self.folder / name).exists()})

    def _owns(self, path: Path) -> bool:
        if path.name == LATEST and path.is_symlink():
            return NAME.fullmatch(os.readlink(path)) is not None
        return path.name in self.hashes and self.whole([path.name])


def _set_aside(path: Path) -> None:
    print(f"{path} is not as a run wrote it; it is now {set_aside(path).name}", flush=True)


def numbered(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder with their steps, the newest last."""
    found = ((NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint_*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _is_noted(parts: list[str]) -> bool:
    return len(parts) == 1 and (parts[0] in (LATEST, BEST, ENCODER) or NAME.fullmatch(parts[0]) is not None)


def _copy(path: Path, other: Path) -> None:
    """Let another name be the same file, or one with the same content."""
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copyfile(path, other)
