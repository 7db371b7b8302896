"""Checkpoints of a run: opened without running pickled code, and enough to go on bit by bit.

What lies where in a run's folder, and which of it is removed: `timecycle.training.run_files`.
"""

import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn, optim
from torch.optim.lr_scheduler import LRScheduler

from timecycle.checkpoints import torch_files
from timecycle.errors import InputError
from timecycle.files import check_is_file
from timecycle.training import contents
from timecycle.training.distributed import World
from timecycle.training.run_files import RunFiles
from timecycle.training.settings import Settings

FORMAT = 1


@dataclass
class Progress:
    """How far a run is."""

    step: int = 0
    """Steps taken; with the seed it says which samples come next."""
    best_step: int = 0
    best_score: float = -1.0
    """J&F of the best evaluation, in [0, 1]; -1 before the first."""


@dataclass
class Keeper:
    """Everything that a run is, on disk and back.

    Args:
        folder: of the run.
        settings: that checkpoints carry.
        clips: fingerprint of the clips, which may not change.
        world: its random states are kept by rank.
        model, optimiser, schedule, progress: what a step changes.
    """

    folder: Path
    settings: Settings
    clips: str
    world: World
    model: nn.Module
    optimiser: optim.Optimizer
    schedule: LRScheduler
    progress: Progress = field(default_factory=Progress)
    skipped: Counter[str] = field(default_factory=Counter)
    """How often each clip was skipped in the whole run, by 'name: reason', as of the last save."""
    newly_skipped: Counter[str] = field(default_factory=Counter)
    """The same since then, by this process."""

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Take the state of a checkpoint, of the file at `path`; all of it is checked before any is taken.

        Raises InputError if it is damaged, or of another model or of other clips.
        """
        try:
            contents.expect(isinstance(checkpoint.get("clips"), str), "clips has no fingerprint")
            contents.check_progress(checkpoint.get("progress"), vars(Progress()))
            step = checkpoint["progress"]["step"]
            contents.check_model(checkpoint.get("model"), self.model)
            expected = contents.check_schedule(checkpoint.get("schedule"), self.schedule, step)
            contents.check_optimiser(checkpoint.get("optimiser"), self.optimiser, step, expected)
            contents.check_skipped(checkpoint.get("skipped"))
            contents.check_random(checkpoint.get("random"))
        except contents.Damage as damage:
            raise InputError(f"{path} does not fit this run ({damage}); expected a checkpoint of it, whole") from None
        if checkpoint["clips"] != self.clips:
            raise InputError(
                f"{self.settings.source} does not hold the clips that the run of {path} began with; expected the same, "
                "as they change the result"
            )
        self.model.load_state_dict(checkpoint["model"])
        found, own = checkpoint["optimiser"], self.optimiser.state_dict()
        groups = [mine | theirs for mine, theirs in zip(own["param_groups"], found["param_groups"], strict=True)]
        self.optimiser.load_state_dict({"state": found["state"], "param_groups": groups})
        rates, own = checkpoint["schedule"], self.schedule.state_dict()
        self.schedule.load_state_dict({name: rates.get(name, value) for name, value in own.items()})
        vars(self.progress).update(checkpoint["progress"])
        self.skipped = Counter(checkpoint["skipped"])
        states = checkpoint["random"]
        if self.world.rank < len(states):  # else of a process that was not there before: as it began
            restore_random_states(states[self.world.rank])

    def save(self) -> Path:
        """Write `checkpoint_<step>.pt`, point latest.pt at it, remove all but the newest few. Returns its path.

        All processes call this; the first one writes.
        """
        path = self.folder / f"checkpoint_{self.progress.step:07d}.pt"
        gathered = self.world.gather((random_states(), self.newly_skipped))
        for _, skipped in gathered:
            self.skipped.update(skipped)
        self.newly_skipped.clear()
        if self.world.first:
            content = {
                "format": FORMAT,
                "model": self.model.state_dict(),
                "optimiser": self.optimiser.state_dict(),
                "schedule": self.schedule.state_dict(),
                "progress": vars(self.progress).copy(),
                "random": [states for states, _ in gathered],
                "skipped": dict(self.skipped),
                "settings": self.settings.to_json(),
                "clips": self.clips,
            }
            files = RunFiles(self.folder)
            with files.writing(path.name) as partial:
                _write(partial, content)
            files.keep_newest(self.settings.keep)
        self.world.gather(None)  # it is there when any process goes on
        return path


def seed_everything(seed: int) -> None:
    """Begin every random number generator of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  libraries may draw from it
    torch.manual_seed(seed)


def random_states() -> dict[str, Any]:
    """The state of every random number generator of this process, in types that load without pickled code."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  the global state is what libraries draw from
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": inner | {"key": torch.from_numpy(inner["key"].astype(np.int64))}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_random_states(states: dict[str, Any]) -> None:
    """Put back what `random_states` returned."""
    random.setstate(contents.python_state(states))
    np.random.set_state(contents.numpy_state(states))  # noqa: NPY002  the global state is what libraries draw from
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


class Undo:
    """What a step changes before it is known to be good: generators and buffers (batch statistics)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._random = random_states()
        self._buffers = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def __call__(self) -> None:
        """Put it back."""
        restore_random_states(self._random)
        for buffer, value in zip(self._model.buffers(), self._buffers, strict=True):
            buffer.copy_(value)


def _write(path: Path, content: dict[str, Any]) -> None:
    """Write a file of torch.save. Raises OSError if it cannot be written."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # what PyTorch makes of some failures to write
        raise OSError(str(error).splitlines()[0]) from None


def existing(path: Path) -> Path:
    """The path of a checkpoint. Raises InputError if there is no file."""
    check_is_file(path, "a checkpoint of this program for --resume, or auto")
    return path


def read(path: Path) -> dict[str, Any]:
    """Open a checkpoint of `save`, onto the CPU. Raises InputError if it is missing, damaged or of another program."""
    existing(path)
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
    return content
