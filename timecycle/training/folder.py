"""The folder of a run: which it is, what it is gone on from, and the settings kept in it.

settings.json    settings, and of every process that worked on the run its command, commit and versions
checkpoint_*.pt  see timecycle.training.checkpoints
log.jsonl        a line of numbers for each step, and one with the J&F for each evaluation
tensorboard/     the same, and pictures
pictures/        the pictures, as JPEG
encoder.safetensors    at the end: what test_davis.py --resume takes
"""

import json
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import torch

from timecycle.errors import InputError
from timecycle.files import write_bytes
from timecycle.results import versions
from timecycle.training import checkpoints
from timecycle.training.distributed import World
from timecycle.training.settings import Settings, usual_objective

HOME = Path("out")


@dataclass(frozen=True)
class Run:
    """A run's folder, and the checkpoint to go on from: its path and content, both None for a new run."""

    folder: Path
    path: Path | None = None
    checkpoint: dict[str, Any] | None = None


def find_run(given: dict[str, Any]) -> Run:
    """The run that a command line means. Changes nothing, so every process finds the same.

    Raises InputError if a new run would fall among another's checkpoints, or the checkpoint asked for cannot be read.
    """
    asked, folder = given.get("resume"), given.get("checkpoint")
    if asked is None:
        return Run(_empty(folder) if folder else next(path for path in _usual_folders(given) if not _holds_run(path)))
    if asked != "auto":
        path = Path(asked)
        checkpoint = checkpoints.read(path)
        if folder and folder.resolve() != path.resolve().parent:
            return Run(_empty(folder), path, checkpoint)
        _, newest = checkpoints.numbered(path.parent)[-1]
        if newest.resolve() != path.resolve() and checkpoints.read(newest)["progress"] != checkpoint["progress"]:
            raise InputError(
                f"{newest} is newer than {path}; expected the newest, or another --checkpoint to branch into"
            )
        return Run(path.parent, path, checkpoint)
    if folder is None:
        folder = HOME / _usual_name(given)
        for path in _usual_folders(given):
            if not _holds_run(path):
                break
            folder = path
    damage: InputError | None = None
    for _, path in reversed(checkpoints.numbered(folder)):
        try:
            return Run(folder, path, checkpoints.read(path))
        except InputError as error:  # the one before it serves
            damage = damage or error
    if damage:
        raise damage
    return Run(folder)


def _empty(folder: Path) -> Path:
    if _holds_run(folder):
        raise InputError(f"{folder} holds a run; expected --resume auto to go on with it, or another --checkpoint")
    return folder


def _holds_run(folder: Path) -> bool:
    return (folder / "settings.json").exists() or bool(checkpoints.numbered(folder))


def _usual_name(given: dict[str, Any]) -> str:
    data = given.get("filelist") or given.get("videos")
    return f"train-{given.get('objective', usual_objective(given))}-{data.stem if data else 'made'}"


def _usual_folders(given: dict[str, Any]) -> Iterator[Path]:
    """Where runs of such a command line go: the first, then numbered ones."""
    for number in count(1):
        yield HOME / (_usual_name(given) + (f"-{number}" if number > 1 else ""))


def begin(run: Run, settings: Settings, world: World, step: int) -> None:
    """Make the folder, or clear what lies beyond the step that is gone on from; store the settings."""
    for number, path in checkpoints.numbered(run.folder):
        if number > step:
            path.unlink()
    file = run.folder / "settings.json"
    runs = json.loads(file.read_text())["runs"] if file.is_file() and run.checkpoint else []
    now = {
        "from_step": step,
        "command": sys.argv,
        "commit": commit(),
        "versions": versions(),
        "processes": world.size,
        "threads": torch.get_num_threads(),
        "device": torch.cuda.get_device_name(world.device) if world.device.type == "cuda" else "cpu",
    }
    content = {"settings": settings.to_json(), "runs": [*runs, now]}
    write_bytes(file, (json.dumps(content, indent=1) + "\n").encode())


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
