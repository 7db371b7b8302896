"""The folder of a run: which folder a command line selects, which checkpoint is resumed, and the files in it.

settings.json           settings; command, commit and versions of each start of the run
checkpoint_<step>.pt    the newest few; latest.pt points to the newest, best.pt has the best validation score
encoder.safetensors     the trained encoder, written at the end
log.jsonl               a line of numbers per step, and a line with J&F, J and F per validation
report.html             the page of the run (`timecycle.training.report`)
tensorboard/            the same numbers, and images
images/                 the images, as JPEG
.written/.run.json      hashes of checkpoints, encoder and page (`timecycle.manifest`); other files are never removed
.lock, .holder          the lock of the folder (`timecycle.locks`)
"""

import os
import re
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from timecycle.checkpoints import torch_files
from timecycle.errors import InputError
from timecycle.files import check_is_file, growing, hash_of, inside, is_plain, read_json, set_aside, write_json
from timecycle.locks import HOLDER, LOCK, InUse, owned
from timecycle.manifest import NOTES, PAGE, Hashes, Notes
from timecycle.models.timecycle import current_names
from timecycle.progress import say
from timecycle.provenance import commit, versions
from timecycle.training.distributed import Distributed
from timecycle.training.settings import RunSettings, usual_objective

RUNS = Path("out")  # parent of default folders
SETTINGS = "settings.json"
LOG = "log.jsonl"
IMAGES = "images"
LATEST, BEST, ENCODER = "latest.pt", "best.pt", "encoder.safetensors"
CHECKPOINT_NAME = re.compile(r"checkpoint_(\d+)\.pt")
FORMAT = 1  # version of the checkpoint format
_NOTES_NAME = ".run"

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run's folder, and path and content of the checkpoint to resume; both None for a new run."""

    folder: Path
    path: Path | None = None
    checkpoint: dict[str, Any] | None = None
    passed_over: str | None = None
    """What is wrong with the newest checkpoint, if an earlier one is resumed."""

    @property
    def stored(self) -> Any:
        """The checkpoint's settings; None for a new run. Raises InputError if it has none."""
        if self.checkpoint is None:
            return None
        if (found := self.checkpoint.get("settings")) is None:
            raise InputError(f"{self.path} holds no settings; expected a checkpoint of this program")
        return found


@contextmanager
def locked_run_folder(given: dict[str, Any], distributed: Distributed) -> Iterator[Path]:
    """Create and lock the folder of the run that a command line selects, until the block ends.

    A new run without --checkpoint takes the first free default folder. If the folder holds no run when the block ends,
    what was created is removed. Every rank must call this; rank 0 holds the lock.
    Raises InputError if another process holds it, or if the folder cannot be written.
    """
    with ExitStack() as stack:
        folder = _lock_folder(given, stack) if distributed.is_rank_zero else None
        yield distributed.all_gather(folder)[0]


def _lock_folder(given: dict[str, Any], stack: ExitStack) -> Path:
    resume, folder = given.get("resume"), given.get("checkpoint")
    if folder is None and resume == "auto":
        folder = _newest_default_folder(given)
    elif folder is None and resume is not None:
        folder = existing_checkpoint(Path(resume)).parent
    if folder is not None:
        stack.enter_context(_locked(folder))
        return folder
    for folder in _default_folders(given):
        if _holds_run(folder):
            continue
        with ExitStack() as attempt:
            try:
                attempt.enter_context(_locked(folder))
            except InUse:
                continue
            if not _holds_run(folder):  # another run may have ended before the lock was acquired
                stack.enter_context(attempt.pop_all())
                return folder
    raise AssertionError  # default folders are infinite


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """As `owned`; at the end remove what it created, unless the folder holds a run."""
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with owned(folder, IMAGES):
            try:
                yield
            finally:
                if not _holds_run(folder):
                    # The lock file last: a process that has opened it finds it removed, and creates another.
                    with suppress(OSError):
                        (folder / HOLDER).unlink(missing_ok=True)
                        if not (folder / LOCK).stat().st_size:  # a user's file of this name is not empty
                            (folder / LOCK).unlink()
    finally:
        for each in created:
            with suppress(OSError):  # not empty, or not created
                each.rmdir()


def find_run(given: dict[str, Any], set_up: Callable[[Run], T]) -> T:
    """The result of `set_up` for the run that a command line selects. Writes nothing: every rank finds the same run.

    set_up: raises InputError for a checkpoint that cannot be resumed; --resume auto then tries the one before it.
    Raises InputError if the folder of a new run holds another, or if the given checkpoint cannot be resumed.
    """
    resume, folder = given.get("resume"), given.get("checkpoint")
    if resume is None:
        folder = folder or next(path for path in _default_folders(given) if not _holds_run(path))
        return set_up(Run(_check_free(folder)))
    if resume != "auto":
        path = Path(resume)
        checkpoint = load_checkpoint(path)
        if folder and folder.resolve() != path.resolve().parent:
            return set_up(Run(_check_free(folder), path, checkpoint))
        for _, newest in list_checkpoints(path.parent)[-1:]:
            if newest.resolve() != path.resolve() and _steps(load_checkpoint(newest)) != _steps(checkpoint):
                raise InputError(
                    f"{newest} is newer than {path}; expected the newest, or another --checkpoint to branch into"
                )
        return set_up(Run(path.parent, path, checkpoint))
    folder = folder or _newest_default_folder(given)
    damage: InputError | None = None
    for _, path in reversed(list_checkpoints(folder)):
        try:
            return set_up(Run(folder, path, load_checkpoint(path), str(damage) if damage else None))
        except InputError as error:
            damage = damage or error
    if damage:
        raise damage
    return set_up(Run(folder if (folder / SETTINGS).exists() else _check_free(folder)))


def existing_checkpoint(path: Path) -> Path:
    """The path of a checkpoint. Raises InputError if there is no file."""
    check_is_file(path, "a checkpoint of this program for --resume, or auto")
    return path


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a run's checkpoint onto the CPU. Raises InputError if it is missing, damaged or of another program."""
    existing_checkpoint(path)
    try:
        content = torch_files.load(path)
    except InputError as error:
        reason = str(error).removeprefix(f"{path} ").partition(";")[0]
        raise InputError(
            f"--resume {path} is damaged or holds code, as it {reason}; expected a checkpoint of this program"
        ) from None
    version = content.get("format") if isinstance(content, dict) else None
    if type(version) is not int or version != FORMAT:
        raise InputError(
            f"--resume {path} does not hold a run to go on from; expected a checkpoint of this program "
            "(--pretrained takes weights alone)"
        )
    # Names from before 0.1.0.
    if "optimiser" in content:
        content["optimizer"] = content.pop("optimiser")
    if isinstance(content.get("model"), dict):
        content["model"] = current_names(content["model"])
    return content


def _steps(checkpoint: dict[str, Any]) -> int | None:
    """The number of steps stored in a checkpoint; None if it has none."""
    progress = checkpoint.get("progress")
    step = progress.get("step") if isinstance(progress, dict) else None
    return step if isinstance(step, int) else None


def _check_free(folder: Path) -> Path:
    """The folder of a new run. Raises InputError if it holds another run, or files that a run would replace."""
    if _holds_run(folder):
        raise InputError(f"{folder} holds a run; expected --resume auto to go on with it, or another --checkpoint")
    images = sorted(path.name for path in (folder / IMAGES).glob("*"))
    for name in (LOG, PAGE, ENCODER, LATEST, BEST, *(f"{IMAGES}/{name}" for name in images)):
        if os.path.lexists(folder / name):
            raise InputError(f"{folder / name} is there, and is of no run; expected another --checkpoint, or it moved")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / SETTINGS).exists() or bool(list_checkpoints(folder))


def _default_name(given: dict[str, Any]) -> str:
    data = given.get("filelist") or given.get("videos")
    return f"train-{given.get('objective', usual_objective(given))}-{data.stem if data else 'synthetic'}"


def _default_folders(given: dict[str, Any]) -> Iterator[Path]:
    """The default folders of a command line: the first without a number, then numbered ones, infinitely many."""
    for number in count(1):
        yield RUNS / (_default_name(given) + (f"-{number}" if number > 1 else ""))


def _newest_default_folder(given: dict[str, Any]) -> Path:
    """The last default folder that holds a run; the first if none does."""
    folder = RUNS / _default_name(given)
    for path in _default_folders(given):
        if not _holds_run(path):
            break
        folder = path
    return folder


def start_run(
    run: Run, settings: RunSettings, distributed: Distributed, step: int, best_step: int, length: int | None = None
) -> str | None:
    """Write settings.json; remove checkpoints of later steps than `step`, at which the run starts.

    length: steps of the whole run, for its page.
    Returns what was lost, in words: a damaged settings.json is written anew from the checkpoint.
    Raises InputError if the folder cannot be written.
    """
    files = RunFiles(run.folder)
    files.clear_after(step)
    file = run.folder / SETTINGS
    runs, lost = [], None
    if run.path and run.path.resolve().parent == run.folder.resolve():
        try:
            runs = read_starts(file)[1]
        except InputError as error:
            lost = f"the list of processes that worked on the run begins anew: {error}"
        # If the last process was killed in `save`, before it did these.
        files.keep_newest(settings.keep)
        if best_step == step > 0:
            files.keep_best(run.path)
    now = {
        "from_step": step,
        "length": length,
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "processes": distributed.world_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(distributed.device) if distributed.device.type == "cuda" else "cpu",
    }
    write_json(file, {"settings": settings.to_json(), "runs": [*runs, now]})
    return lost


def note_speed(folder: Path, speed: dict[str, float]) -> None:
    """Store in settings.json how far and how fast the process got that works on the run.

    Raises InputError if settings.json is damaged or cannot be written.
    """
    settings, runs = read_starts(folder / SETTINGS)
    write_json(folder / SETTINGS, {"settings": settings, "runs": [*runs[:-1], *(run | speed for run in runs[-1:])]})


def read_starts(file: Path) -> tuple[Any, list[dict[str, Any]]]:
    """The settings in settings.json, unchecked, and the starts of the run. Raises InputError if it has no such list."""
    expected = "a run's settings.json"
    found = read_json(file, expected)
    runs = found.get("runs") if isinstance(found, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) and is_plain(run, 5) for run in runs):
        raise InputError(f"{file} is damaged (it has no list of runs); expected {expected}")
    return found.get("settings"), runs


class RunFiles(Notes):
    """Checkpoints, encoder and page of a folder. A file of their names that no run wrote is renamed; a line says so."""

    def __init__(self, folder: Path) -> None:
        notes = inside(folder, NOTES, f"{_NOTES_NAME}.json")
        try:
            super().__init__(folder, _NOTES_NAME, _is_noted)
        except InputError as damage:
            say(f"{damage}; it is now {set_aside(notes).name}, and what it names is not removed any more")
            super().__init__(folder, _NOTES_NAME, _is_noted)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Write a file atomically, see `timecycle.files.growing`; its hash is stored before it is moved into place."""
        path = self.folder / name
        if os.path.lexists(path) and not self._owns(path):
            _rename_foreign(path)
        with growing(path) as partial:
            yield partial
            if noted := not partial.is_symlink():
                self.expect({name: [hash_of(partial)]})
        if noted:
            self._note_existing({**self.hashes, name: self.hashes[name][-1:]})

    def keep_newest(self, keep: int) -> None:
        """Point latest.pt to the newest checkpoint, if any, and remove all but the newest `keep`."""
        found = [path for _, path in list_checkpoints(self.folder)]
        for path in found[-1:]:
            with self.writing(LATEST) as partial:
                try:
                    partial.symlink_to(path.name)
                except OSError:  # a file system without links
                    _copy(path, partial)
        self._remove(path for path in found[:-keep] if path.name in self.hashes)

    def keep_best(self, path: Path) -> None:
        """Link or copy this checkpoint to best.pt. Raises InputError if that fails."""
        with self.writing(BEST) as partial:
            _copy(path, partial)

    def clear_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; rename those that no run wrote."""
        self._remove((path for number, path in list_checkpoints(self.folder) if number > step), _rename_foreign)

    def _remove(self, paths: Iterable[Path], otherwise: Callable[[Path], None] | None = None) -> None:
        """Remove the files that a run wrote; call `otherwise` for others. Raises InputError if that fails."""
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
            self._note_existing(
                {name: hashes for name, hashes in self.hashes.items() if self.folder / name not in gone}
            )

    def _note_existing(self, hashes: Hashes) -> None:
        """Store the hashes of those files that exist; a killed process leaves hashes of others."""
        self.settle({name: found for name, found in hashes.items() if (self.folder / name).exists()})

    def _owns(self, path: Path) -> bool:
        if path.name == LATEST and path.is_symlink():
            return CHECKPOINT_NAME.fullmatch(os.readlink(path)) is not None
        return path.name in self.hashes and self.whole([path.name])


def _rename_foreign(path: Path) -> None:
    say(f"{path} is not as a run wrote it; it is now {set_aside(path).name}")


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder with their steps, the newest last."""
    found = ((CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint_*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _is_noted(parts: list[str]) -> bool:
    return len(parts) == 1 and (
        parts[0] in (LATEST, BEST, ENCODER, PAGE) or CHECKPOINT_NAME.fullmatch(parts[0]) is not None
    )


def _copy(path: Path, other: Path) -> None:
    """Hard link a file to another name, or copy it."""
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copyfile(path, other)
