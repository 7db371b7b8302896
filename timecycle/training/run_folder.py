"""The folder of a run: which one a command line means, what is resumed from it, and which files are in it.

settings.json           settings, and of every process that worked on the run its command, commit and versions
checkpoint_<step>.pt    the newest few; latest.pt points to the newest, best.pt is that of the best validation score
encoder.safetensors     at the end
log.jsonl               a line of numbers for each step, and one with the J&F for each validation
tensorboard/            the same, and images
images/                 the images, as JPEG
.written/.run.json      hashes of checkpoints and encoder, see `timecycle.manifest`; files of another origin stay
.lock, .holder          see `timecycle.locks`: one training at a time
"""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from timecycle.checkpoints import torch_files
from timecycle.errors import InputError
from timecycle.evaluation.davis.results import versions
from timecycle.files import check_is_file, growing, hash_of, inside, is_plain, read_json, set_aside, write_json
from timecycle.locks import HOLDER, LOCK, InUse, owned
from timecycle.manifest import NOTES, Hashes, Notes
from timecycle.models.timecycle import current_names
from timecycle.training.command_line import usual_objective
from timecycle.training.distributed import Distributed
from timecycle.training.settings import RunSettings

RUNS = Path("out")  # where runs without --checkpoint go
SETTINGS = "settings.json"
LOG = "log.jsonl"
IMAGES = "images"
LATEST, BEST, ENCODER = "latest.pt", "best.pt", "encoder.safetensors"
CHECKPOINT_NAME = re.compile(r"checkpoint_(\d+)\.pt")
FORMAT = 1  # of checkpoints
_NOTES_NAME = ".run"

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run's folder, and the checkpoint to resume: its path and content, both None for a new run."""

    folder: Path
    path: Path | None = None
    checkpoint: dict[str, Any] | None = None
    passed_over: str | None = None
    """What is wrong with the newest checkpoint, where an earlier one is resumed."""

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
    """The folder of the run that a command line means, created, and locked until the block ends.

    A new run without --checkpoint takes the first default folder that is free. A folder that holds no run when the
    block ends is left as it was found. All processes of the run call this; rank 0 holds the lock.
    Raises InputError if another process holds it, or if it cannot be written.
    """
    with ExitStack() as stack:
        folder = _lock_folder(given, stack) if distributed.is_rank_zero else None
        yield distributed.all_gather(folder)[0]


def _lock_folder(given: dict[str, Any], stack: ExitStack) -> Path:
    asked, folder = given.get("resume"), given.get("checkpoint")
    if folder is None and asked == "auto":
        folder = _newest_default_folder(given)
    elif folder is None and asked is not None:
        folder = existing_checkpoint(Path(asked)).parent
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
            if not _holds_run(folder):  # one that has ended in the meantime
                stack.enter_context(attempt.pop_all())
                return folder
    raise AssertionError  # there is no last default folder


@contextmanager
def _locked(folder: Path) -> Iterator[None]:
    """As `owned`; what it created is removed at the end, unless a run is in the folder."""
    created = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with owned(folder, IMAGES):
            try:
                yield
            finally:
                if not _holds_run(folder):
                    # The lock last: a process that opened it meanwhile finds that it is gone, and creates another.
                    with suppress(OSError):
                        (folder / HOLDER).unlink(missing_ok=True)
                        if not (folder / LOCK).stat().st_size:  # a user's own would hold something
                            (folder / LOCK).unlink()
    finally:
        for each in created:
            with suppress(OSError):  # it is not empty, or was never created
                each.rmdir()


def find_run(given: dict[str, Any], set_up: Callable[[Run], T]) -> T:
    """What `set_up` returns for the run that a command line means. Changes nothing, so every process finds the same.

    set_up: raises InputError for a checkpoint that cannot be resumed; --resume auto then takes the one before it.
    Raises InputError if a new run would fall among another's checkpoints, or the checkpoint asked for cannot be read.
    """
    asked, folder = given.get("resume"), given.get("checkpoint")
    if asked is None:
        folder = folder or next(path for path in _default_folders(given) if not _holds_run(path))
        return set_up(Run(_check_free(folder)))
    if asked != "auto":
        path = Path(asked)
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
        except InputError as error:  # try the one before it
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
    return _with_current_names(content)


def _with_current_names(checkpoint: dict[str, Any]) -> dict[str, Any]:
    """A checkpoint with the names that version 0.1 wrote otherwise replaced."""
    if "optimiser" in checkpoint:
        checkpoint["optimizer"] = checkpoint.pop("optimiser")
    if isinstance(checkpoint.get("model"), dict):
        checkpoint["model"] = current_names(checkpoint["model"])
    return checkpoint


def _steps(checkpoint: dict[str, Any]) -> int | None:
    """How many steps a checkpoint says it has taken, if it does."""
    progress = checkpoint.get("progress")
    step = progress.get("step") if isinstance(progress, dict) else None
    return step if isinstance(step, int) else None


def _check_free(folder: Path) -> Path:
    """A folder for a new run. Raises InputError if it holds another, or files that a run would replace."""
    if _holds_run(folder):
        raise InputError(f"{folder} holds a run; expected --resume auto to go on with it, or another --checkpoint")
    images = sorted(path.name for path in (folder / IMAGES).glob("*"))
    for name in (LOG, ENCODER, LATEST, BEST, *(f"{IMAGES}/{name}" for name in images)):
        if os.path.lexists(folder / name):
            raise InputError(f"{folder / name} is there, and is of no run; expected another --checkpoint, or it moved")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / SETTINGS).exists() or bool(list_checkpoints(folder))


def _default_name(given: dict[str, Any]) -> str:
    data = given.get("filelist") or given.get("videos")
    return f"train-{given.get('objective', usual_objective(given))}-{data.stem if data else 'synthetic'}"


def _default_folders(given: dict[str, Any]) -> Iterator[Path]:
    """Where runs of such a command line go without --checkpoint: the first, then numbered ones."""
    for number in count(1):
        yield RUNS / (_default_name(given) + (f"-{number}" if number > 1 else ""))


def _newest_default_folder(given: dict[str, Any]) -> Path:
    """The last of the default folders that holds a run; the first if none does."""
    folder = RUNS / _default_name(given)
    for path in _default_folders(given):
        if not _holds_run(path):
            break
        folder = path
    return folder


def start_run(run: Run, settings: RunSettings, distributed: Distributed, step: int, best_step: int) -> str | None:
    """Write settings.json; of a resumed run remove checkpoints of later steps than `step`, the one resumed from.

    Returns what was lost, in words: a damaged settings.json is written anew from the checkpoint.
    Raises InputError if the folder cannot be written.
    """
    files = RunFiles(run.folder)
    files.clear_after(step)
    file = run.folder / SETTINGS
    runs, lost = [], None
    if run.path and run.path.resolve().parent == run.folder.resolve():
        try:
            runs = _earlier_runs(file)
        except InputError as error:
            lost = f"the list of processes that worked on the run begins anew: {error}"
        files.keep_newest(settings.keep)  # in case a process was killed in `save` before it did
        if best_step == step > 0:  # likewise
            files.keep_best(run.path)
    now = {
        "from_step": step,
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "processes": distributed.world_size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(distributed.device) if distributed.device.type == "cuda" else "cpu",
    }
    write_json(file, {"settings": settings.to_json(), "runs": [*runs, now]})
    return lost


def _earlier_runs(file: Path) -> list[Any]:
    """The processes that worked on a run. Raises InputError if its settings.json does not say."""
    expected = "a run's settings.json"
    found = read_json(file, expected)
    runs = found.get("runs") if isinstance(found, dict) else None
    if not isinstance(runs, list) or not all(isinstance(run, dict) and is_plain(run, 5) for run in runs):
        raise InputError(f"{file} is damaged (it has no list of runs); expected {expected}")
    return runs


def commit() -> str | None:
    """The commit of this code, "-dirty" if files differ from it; None outside a checkout."""
    command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parent, capture_output=True, text=True, check=True, timeout=20
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


class RunFiles(Notes):
    """Checkpoints and encoder of a folder. A file in the way that no run wrote is renamed, and a line says to what."""

    def __init__(self, folder: Path) -> None:
        notes = inside(folder, NOTES, f"{_NOTES_NAME}.json")
        try:
            super().__init__(folder, _NOTES_NAME, _is_noted)
        except InputError as damage:
            print(f"{damage}; it is now {set_aside(notes).name}, and what it names is not removed any more", flush=True)
            super().__init__(folder, _NOTES_NAME, _is_noted)

    @contextmanager
    def writing(self, name: str) -> Iterator[Path]:
        """Where to write one of them: moved to its place as by `timecycle.files.growing`, its hash noted before."""
        self.make_room(name)
        with growing(self.folder / name) as partial:
            yield partial
            if noted := not partial.is_symlink():
                self.expect({name: [hash_of(partial)]})
        if noted:
            self._note_existing({**self.hashes, name: self.hashes[name][-1:]})

    def make_room(self, name: str) -> None:
        """Rename what is there under a name, unless a run wrote it."""
        path = self.folder / name
        if os.path.lexists(path) and not self._owns(path):
            _rename_foreign(path)

    def keep_newest(self, keep: int) -> None:
        """Point latest.pt at the newest checkpoint, and remove all but the newest `keep`, if there are any."""
        found = [path for _, path in list_checkpoints(self.folder)]
        for path in found[-1:]:
            with self.writing(LATEST) as partial:
                try:
                    partial.symlink_to(path.name)
                except OSError:  # a file system without links
                    _copy(path, partial)
        self._remove(path for path in found[:-keep] if path.name in self.hashes)

    def keep_best(self, path: Path) -> None:
        """Link or copy this checkpoint to best.pt. Raises InputError if that cannot be written."""
        with self.writing(BEST) as partial:
            _copy(path, partial)

    def clear_after(self, step: int) -> None:
        """Remove the checkpoints of later steps; those that no run wrote are renamed."""
        self._remove((path for number, path in list_checkpoints(self.folder) if number > step), _rename_foreign)

    def _remove(self, paths: Iterable[Path], otherwise: Callable[[Path], None] | None = None) -> None:
        """Remove those that are as a run wrote them. Raises InputError if that fails."""
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
        """Note the hashes of these, without files that a killed process had not moved in place, or had removed."""
        self.settle({name: found for name, found in hashes.items() if (self.folder / name).exists()})

    def _owns(self, path: Path) -> bool:
        if path.name == LATEST and path.is_symlink():
            return CHECKPOINT_NAME.fullmatch(os.readlink(path)) is not None
        return path.name in self.hashes and self.whole([path.name])


def _rename_foreign(path: Path) -> None:
    print(f"{path} is not as a run wrote it; it is now {set_aside(path).name}", flush=True)


def list_checkpoints(folder: Path) -> list[tuple[int, Path]]:
    """The checkpoints of a folder with their steps, the newest last."""
    found = ((CHECKPOINT_NAME.fullmatch(path.name), path) for path in folder.glob("checkpoint_*.pt"))
    return sorted((int(match[1]), path) for match, path in found if match)


def _is_noted(parts: list[str]) -> bool:
    return len(parts) == 1 and (parts[0] in (LATEST, BEST, ENCODER) or CHECKPOINT_NAME.fullmatch(parts[0]) is not None)


def _copy(path: Path, other: Path) -> None:
    """Hard link a file to another name, or copy it."""
    try:
        os.link(path, other)
    except OSError:  # a file system without links
        shutil.copyfile(path, other)
