"""Checkpoints of a run: all state that it needs to continue bit for bit, validated before any of it is restored."""

import math
import random
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn, optim
from torch.optim.lr_scheduler import LRScheduler

from timecycle.errors import InputError
from timecycle.training.distributed import Distributed
from timecycle.training.run_folder import FORMAT, RunFiles
from timecycle.training.settings import RunSettings

MT_WORDS = 624  # size of the state of a Mersenne Twister


@dataclass
class Progress:
    """Progress of a run."""

    step: int = 0
    """Steps taken; with the seed it determines the next samples."""
    best_step: int = 0
    best_score: float = -1.0
    """J&F of the best validation, in [0, 1]; -1 before the first."""

    def record_score(self, score: float) -> bool:
        """Store the score of a validation if it is the best so far; returns whether it is."""
        if score <= self.best_score:
            return False
        self.best_score, self.best_step = score, self.step
        return True


@dataclass
class Checkpointer:
    """Saves and restores the state of a run.

    settings: stored in every checkpoint.
    clips: digest of the clips, which may not change.
    """

    folder: Path
    settings: RunSettings
    clips: str
    distributed: Distributed
    model: nn.Module
    optimizer: optim.Optimizer
    schedule: LRScheduler
    progress: Progress = field(default_factory=Progress)
    skipped: Counter[str] = field(default_factory=Counter)
    """Number of times that each clip was skipped in the run, by 'name: reason', as of the last save."""
    newly_skipped: Counter[str] = field(default_factory=Counter)
    """The same since the last save, in this process."""

    def restore(self, checkpoint: dict[str, Any], path: Path) -> None:
        """Validate a checkpoint, then load it. path: its file, for error messages.

        Raises InputError if it is damaged, or of another model or other clips.
        """
        try:
            require(isinstance(checkpoint.get("clips"), str), "clips has no digest")
            check_progress(checkpoint.get("progress"))
            step = checkpoint["progress"]["step"]
            check_model(checkpoint.get("model"), self.model)
            rates = check_schedule(checkpoint.get("schedule"), self.schedule, step)
            check_optimizer(checkpoint.get("optimizer"), self.optimizer, step, rates)
            check_skipped(checkpoint.get("skipped"))
            check_rng_states(checkpoint.get("random"))
        except DamagedCheckpoint as damage:
            raise InputError(f"{path} does not fit this run ({damage}); expected it undamaged") from None
        if checkpoint["clips"] != self.clips:
            raise InputError(
                f"{self.settings.source} does not hold the clips that the run of {path} began with; expected the same, "
                "as they change the result"
            )
        self.model.load_state_dict(checkpoint["model"])
        stored, own = checkpoint["optimizer"], self.optimizer.state_dict()
        groups = [mine | theirs for mine, theirs in zip(own["param_groups"], stored["param_groups"], strict=True)]
        self.optimizer.load_state_dict({"state": stored["state"], "param_groups": groups})
        stored, own = checkpoint["schedule"], self.schedule.state_dict()
        self.schedule.load_state_dict({name: stored.get(name, value) for name, value in own.items()})
        vars(self.progress).update(checkpoint["progress"])
        self.skipped = Counter(checkpoint["skipped"])
        states = checkpoint["random"]
        if self.distributed.rank < len(states):  # a new rank keeps its initial state
            restore_rng_states(states[self.distributed.rank])

    def save(self) -> Path:
        """Write `checkpoint_<step>.pt`, point latest.pt to it, remove old checkpoints. Returns its path.

        Every rank must call this; rank 0 writes.
        """
        path = self.folder / f"checkpoint_{self.progress.step:07d}.pt"
        gathered = self.distributed.all_gather((rng_states(), self.newly_skipped))
        for _, skipped in gathered:
            self.skipped.update(skipped)
        self.newly_skipped.clear()
        if self.distributed.is_rank_zero:
            content = {
                "format": FORMAT,
                "model": self.model.state_dict(),
                "optimizer": self.optimizer.state_dict(),
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
        self.distributed.barrier()  # no rank continues before the file exists
        return path


class StepSnapshot:
    """A copy of the state that a forward pass changes: random number states and buffers (batch statistics)."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._rng_states = rng_states()
        self._buffers = [buffer.clone() for buffer in model.buffers()]

    @torch.no_grad()
    def restore(self) -> None:
        """Restore the state."""
        restore_rng_states(self._rng_states)
        for buffer, value in zip(self._model.buffers(), self._buffers, strict=True):
            buffer.copy_(value)


def _write(path: Path, content: dict[str, Any]) -> None:
    """`torch.save`. Raises OSError if the file cannot be written."""
    try:
        with path.open("wb") as file:
            torch.save(content, file)
    except RuntimeError as error:  # PyTorch raises it for some write errors
        raise OSError(str(error).splitlines()[0]) from None


def seed_everything(seed: int) -> None:
    """Seed every random number generator of this process."""
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002  for libraries that draw from the global state
    torch.manual_seed(seed)


def rng_states() -> dict[str, Any]:
    """The states of this process's random number generators, in types that load without pickled code."""
    numpy_state = np.random.get_state(legacy=False)  # noqa: NPY002  the global state is what libraries draw from
    assert isinstance(numpy_state, dict)
    inner = numpy_state["state"]
    return {
        "python": random.getstate(),
        "numpy": numpy_state | {"state": inner | {"key": torch.from_numpy(inner["key"].astype(np.int64))}},
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state() if torch.cuda.is_available() else None,
    }


def restore_rng_states(states: dict[str, Any]) -> None:
    """Restore what `rng_states` returned."""
    random.setstate(python_state(states))
    np.random.set_state(numpy_state(states))  # noqa: NPY002  the global state is what libraries draw from
    torch.set_rng_state(states["torch"])
    if states["cuda"] is not None and torch.cuda.is_available():
        torch.cuda.set_rng_state(states["cuda"])


# Checkpoints are validated part by part, since checksums do not exclude damage. The functions below raise
# DamagedCheckpoint with a description of what is wrong.


class DamagedCheckpoint(ValueError):
    """A part of a checkpoint cannot have been written by this program."""


def require(condition: object, what: str) -> None:
    """Raise DamagedCheckpoint unless the condition holds."""
    if not condition:
        raise DamagedCheckpoint(what)


def mapping(value: Any, what: str) -> dict[Any, Any]:
    """The value, checked to be a dict."""
    require(isinstance(value, dict), f"{what} is a {type(value).__name__}, not a dict")
    found: dict[Any, Any] = value
    return found


def is_whole(value: Any, least: int = 0, most: int = 2**53) -> bool:
    """Whether a value is an int, not a bool, in a range."""
    return type(value) is int and least <= value <= most


def is_same(value: Any, like: Any) -> bool:
    """Whether two values have the same type and are equal: numbers, strings, None, or lists or tuples of them."""
    if type(value) is not type(like):
        return False
    if isinstance(like, list | tuple):
        return len(value) == len(like) and all(map(is_same, value, like))
    return bool(value == like)


def check_tensor(value: Any, like: Tensor, what: str) -> None:
    """Check for a dense CPU tensor of the shape and dtype of `like` without infinities and NaN."""
    require(isinstance(value, Tensor), f"{what} is a {type(value).__name__}, not a tensor")
    require(
        value.layout == torch.strided and value.device.type == "cpu" and not value.is_quantized,
        f"{what} is not a dense tensor on the CPU",
    )
    require(value.shape == like.shape, f"{what} has the shape {list(value.shape)}, not {list(like.shape)}")
    require(value.dtype == like.dtype, f"{what} is {value.dtype}, not {like.dtype}")
    require(not value.is_floating_point() or value.isfinite().all(), f"{what} holds numbers that are not finite")


def check_model(state: Any, model: nn.Module) -> None:
    """Check a state dict against the model: the same names, shapes and dtypes."""
    own = model.state_dict()
    mapping(state, "model")
    if other := sorted(map(str, set(state) ^ set(own))):
        raise DamagedCheckpoint(f"{other[0]} is {'missing' if other[0] in own else 'not of this model'}")
    for name, value in own.items():
        check_tensor(state[name], value, name)


def check_progress(progress: Any) -> None:
    """Check the fields of `Progress`."""
    mapping(progress, "progress")
    require(set(progress) == set(vars(Progress())), "progress has other entries")
    require(is_whole(progress["step"]), "progress has no number of steps")
    require(is_whole(progress["best_step"], 0, progress["step"]), "progress has no step of the best evaluation")
    score = progress["best_score"]
    require(type(score) is float and (score == -1 or 0 <= score <= 1), "progress has no score in [0, 1]")
    require((score == -1) == (progress["best_step"] == 0), "progress has a score without a step, or a step without one")


def check_schedule(state: Any, schedule: LRScheduler, step: int) -> list[float]:
    """Check the schedule's state after `step` steps; returns the current learning rates."""
    own = schedule.state_dict()
    mapping(state, "schedule")
    # The entries depend on the version of PyTorch.
    shared = set(state) & set(own)
    require({"last_epoch", "_step_count", "base_lrs", "_last_lr", "lr_lambdas"} <= shared, "schedule lacks entries")
    require(all(type(state[name]) is type(own[name]) for name in shared), "schedule has entries of other types")
    expected = {"last_epoch": step, "_step_count": step + 1} | {name: own[name] for name in ("base_lrs", "lr_lambdas")}
    for name, value in expected.items():
        require(is_same(state[name], value), f"schedule has another {name} than its run at step {step}")
    rates = [base * factor(step) for base, factor in zip(own["base_lrs"], schedule.lr_lambdas, strict=True)]  # type: ignore[attr-defined]  # a LambdaLR
    require(are_close(state["_last_lr"], rates), "schedule has another learning rate")
    return rates


def are_close(values: Any, expected: list[float]) -> bool:
    """Whether values are floats near the expected ones; rounding depends on the hardware."""
    if not isinstance(values, list) or len(values) != len(expected):
        return False
    return all(
        type(value) is float and math.isclose(value, other, rel_tol=1e-6, abs_tol=1e-12)
        for value, other in zip(values, expected, strict=True)
    )


def check_optimizer(state: Any, optimizer: optim.Optimizer, step: int, rates: list[float]) -> None:
    """Check the optimizer's state after `step` steps: the same parameters, at these learning rates."""
    own = optimizer.state_dict()
    mapping(state, "optimizer")
    require(set(state) == set(own), "optimizer has other entries")
    groups = state["param_groups"]
    require(isinstance(groups, list) and len(groups) == len(own["param_groups"]), "optimizer has other groups")
    for group, like, rate in zip(groups, own["param_groups"], rates, strict=True):
        mapping(group, "optimizer's group")
        for name in set(like) & set(group) - {"lr"} | {"params", "initial_lr"}:
            require(is_same(group.get(name), like[name]), f"optimizer has another {name}")
        require(are_close([group.get("lr")], [rate]), "optimizer has another learning rate")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    moments = mapping(state["state"], "optimizer's state")
    # Every step updates every parameter.
    require(set(moments) == set(range(len(parameters) if step else 0)), "optimizer knows other parameters")
    names = {"momentum_buffer"} if isinstance(optimizer, optim.SGD) else {"step", "exp_avg", "exp_avg_sq"}
    for index, values in moments.items():
        require(set(mapping(values, "optimizer's state")) == names, f"optimizer has other entries of parameter {index}")
        for name, value in values.items():
            what = f"optimizer's {name} of parameter {index}"
            if name == "step":
                check_tensor(value, torch.tensor(0.0), what)
                require(float(value) == step, f"{what} is another than progress's")
            else:
                check_tensor(value, parameters[index], what)


def check_skipped(skipped: Any) -> None:
    """Check counts by 'name: reason'."""
    counts = mapping(skipped, "skipped")
    require(all(isinstance(n, str) and is_whole(count, 1) for n, count in counts.items()), "skipped holds no counts")


def check_rng_states(states: Any) -> None:
    """Check the generators' states of each rank, by loading them into new generators."""
    require(isinstance(states, list) and states, "random has no states")
    for state in states:
        mapping(state, "random")
        try:
            random.Random().setstate(python_state(state))
            np.random.RandomState().set_state(numpy_state(state))
            torch.Generator().set_state(state["torch"])
            cuda = state["cuda"]
        except DamagedCheckpoint:
            raise
        except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
            raise DamagedCheckpoint(f"random holds no states: {' '.join(str(error).split())[:100]}") from None
        require(cuda is None or (isinstance(cuda, Tensor) and cuda.dtype == torch.uint8), "random has no GPU's state")
        if cuda is not None and torch.cuda.is_available():
            check_tensor(cuda, torch.cuda.get_rng_state(), "random's state of the GPU")


def python_state(state: dict[str, Any]) -> tuple[Any, ...]:
    """The argument of `random.setstate` in what `rng_states` returned."""
    version, internal, gauss = state["python"]
    words = [word for word in internal if is_whole(word, 0, 2**32 - 1)]
    require(version == 3 and len(words) == len(internal) == MT_WORDS + 1, "random has no state of Python's generator")
    require(gauss is None or type(gauss) is float, "random has no state of Python's generator")
    return version, tuple(words), gauss


def numpy_state(state: dict[str, Any]) -> dict[str, Any]:
    """The argument of `numpy.random.set_state` in what `rng_states` returned."""
    found = mapping(state["numpy"], "random's numpy")
    inner = mapping(found["state"], "random's numpy")
    key = inner["key"]
    check_tensor(key, torch.empty(MT_WORDS, dtype=torch.int64), "random's numpy")
    require(bool(((key >= 0) & (key < 2**32)).all()), "random's numpy holds no words of 32 bits")
    require(is_whole(inner["pos"], 0, MT_WORDS), "random's numpy has no position")
    require(found["has_gauss"] in (0, 1) and type(found["gauss"]) is float, "random's numpy has no next number")
    return found | {"state": inner | {"key": key.numpy().astype(np.uint32)}}
