"""The folder of a run: which it is, what it is gone on from, and the settings kept in it.

settings.json    settings, and of every process that worked on the run its command, commit and versions
checkpoint_*.pt, latest.pt, best.pt, encoder.safetensors    see timecycle.training.run_files
log.jsonl        a line of numbers for each step, and one with the J&F for each evaluation
tensorboard/     the same, and pictures
pictures/        the pictures, as JPEG
.lock, .holder   see timecycle.locks: one training at a time
"""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any, TypeVar

import torch

from timecycle.errors import InputError
from timecycle.evaluation.davis.results import versions
from timecycle.files import is_plain, read_json, write_json
from timecycle.locks import HOLDER, LOCK, InUse, owned
from timecycle.training import checkpointer as checkpoints
from timecycle.training.distributed import World
from timecycle.training.run_files import BEST, ENCODER, LATEST, RunFiles, numbered
from timecycle.training.settings import Settings, usual_objective

HOME = Path("out")
SETTINGS = "settings.json"
LOG = "log.jsonl"
PICTURES = "pictures"

T = TypeVar("T")


@dataclass(frozen=True)
class Run:
    """A run's folder, and the checkpoint to go on from: its path and content, both None for a new run."""

    folder: Path
    path: Path | None = None
    checkpoint: dict[str, Any] | None = None
    passed_over: str | None = None
    """What is wrong with the newest checkpoint, where this one comes before it."""

    @property
    def stored(self) -> Any:
        """The checkpoint's settings; None for a new run. Raises InputError if it has none."""
        if self.checkpoint is None:
            return None
        if (found := self.checkpoint.get("settings")) is None:
            raise InputError(f"{self.path} holds no settings; expected a checkpoint of this program")
        return found


@contextmanager
def own_folder(given: dict[str, Any], world: World) -> Iterator[Path]:
    """The folder of the run that a command line means, made, and kept from other processes until the block ends.

    A new run without a name takes the first usual folder that is free. A folder that holds no run when the block ends
    is left as it was found. All processes of the run call this; the first one holds the folder.
    Raises InputError if another process holds it, or if it cannot be written.
    """
    with ExitStack() as stack:
        folder = _taken(given, stack) if world.first else None
        yield world.gather(folder)[0]


def _taken(given: dict[str, Any], stack: ExitStack) -> Path:
    asked, folder = given.get("resume"), given.get("checkpoint")
    if folder is None and asked == "auto":
        folder = _newest_usual(given)
    elif folder is None and asked is not None:
        folder = checkpoints.existing(Path(asked)).parent
    if folder is not None:
        stack.enter_context(_kept(folder))
        return folder
    for folder in _usual_folders(given):
        if _holds_run(folder):
            continue
        with ExitStack() as attempt:
            try:
                attempt.enter_context(_kept(folder))
            except InUse:
                continue
            if not _holds_run(folder):  # one that has ended in the meantime
                stack.enter_context(attempt.pop_all())
                return folder
    raise AssertionError  # the usual folders have no end


@contextmanager
def _kept(folder: Path) -> Iterator[None]:
    """As `owned`; what it made goes with it, unless a run is in the folder."""
    made = [each for each in (folder, *folder.parents) if not each.exists()]
    try:
        with owned(folder, PICTURES):
            try:
                yield
            finally:
                if not _holds_run(folder):
                    # The lock last: whoever opens it later finds that it is no longer there, and makes another.
                    with suppress(OSError):
                        (folder / HOLDER).unlink(missing_ok=True)
                        if not (folder / LOCK).stat().st_size:  # a user's own would hold something
                            (folder / LOCK).unlink()
    finally:
        for each in made:
            with suppress(OSError):  # it is not empty, or was never made
                each.rmdir()


def find_run(given: dict[str, Any], set_up: Callable[[Run], T]) -> T:
    """What `set_up` makes of the run that a command line means. Changes nothing, so every process finds the same.

    set_up: raises InputError for a checkpoint that cannot be gone on from; --resume auto then takes the one before it.
    Raises InputError if a new run would fall among another's checkpoints, or the checkpoint asked for cannot be read.
    """
    asked, folder = given.get("resume"), given.get("checkpoint")
    if asked is None:
        folder = folder or next(path for path in _usual_folders(given) if not _holds_run(path))
        return set_up(Run(_empty(folder)))
    if asked != "auto":
        path = Path(asked)
        checkpoint = checkpoints.read(path)
        if folder and folder.resolve() != path.resolve().parent:
            return set_up(Run(_empty(folder), path, checkpoint))
        for _, newest in numbered(path.parent)[-1:]:
            if newest.resolve() != path.resolve() and _steps(checkpoints.read(newest)) != _steps(checkpoint):
                raise InputError(
                    f"{newest} is newer than {path}; expected the newest, or another --checkpoint to branch into"
                )
        return set_up(Run(path.parent, path, checkpoint))
    folder = folder or _newest_usual(given)
    damage: InputError | None = None
    for _, path in reversed(numbered(folder)):
        try:
            return set_up(Run(folder, path, checkpoints.read(path), str(damage) if damage else None))
        except InputError as error:  # the one before it serves
            damage = damage or error
    if damage:
        raise damage
    return set_up(Run(folder if (folder / SETTINGS).exists() else _empty(folder)))


def _steps(checkpoint: dict[str, Any]) -> int | None:
    """How many steps a checkpoint says it has taken, if it does."""
    progress = checkpoint.get("progress")
    step = progress.get("step") if isinstance(progress, dict) else None
    return step if isinstance(step, int) else None


def _empty(folder: Path) -> Path:
    """A folder for a new run. Raises InputError if it holds another, or files that a run would replace."""
    if _holds_run(folder):
        raise InputError(f"{folder} holds a run; expected --resume auto to go on with it, or another --checkpoint")
    pictures = sorted(path.name for path in (folder / PICTURES).glob("*"))
    for name in (LOG, ENCODER, LATEST, BEST, *(f"{PICTURES}/{name}" for name in pictures)):
        if os.path.lexists(folder / name):
            raise InputError(f"{folder / name} is there, and is of no run; expected another --checkpoint, or it moved")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / SETTINGS).exists() or bool(numbered(folder))


def _usual_name(given: dict[str, Any]) -> str:
    data = given.get("filelist") or given.get("videos")
    return f"train-{given.get('objective', usual_objective(given))}-{data.stem if data else 'made'}"


def _usual_folders(given: dict[str, Any]) -> Iterator[Path]:
    """Where runs of such a command line go: the first, then numbered ones."""
    for number in count(1):
        yield HOME / (_usual_name(given) + (f"-{number}" if number > 1 else ""))


def _newest_usual(given: dict[str, Any]) -> Path:
    """The last of the usual folders that holds a run; the first if none does."""
    folder = HOME / _usual_name(given)
    for path in _usual_folders(given):
        if not _holds_run(path):
            break
        folder = path
    return folder


def begin(run: Run, settings: Settings, world: World, progress: checkpoints.Progress) -> str | None:
    """Make the folder, or clear what lies beyond the step that is gone on from; store the settings.

    Returns what was lost, in words: settings.json is made anew from the checkpoint where it is damaged.
    Raises InputError if the folder cannot be written.
    """
    files = RunFiles(run.folder)
    files.clear_after(progress.step)
    file = run.folder / SETTINGS
    runs, lost = [], None
    if run.path and run.path.resolve().parent == run.folder.resolve():
        try:
            runs = _earlier_runs(file)
        except InputError as error:
            lost = f"the list of processes that worked on the run begins anew: {error}"
        files.keep_newest(settings.keep)  # as a process that was killed in `save` had not yet
        if progress.best_step == progress.step > 0:  # it may have been killed before it did this
            files.keep_best(run.path)
    now = {
        "from_step": progress.step,
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
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
