"""What a run says: console lines, a log with a line for each step and each evaluation, TensorBoard, pictures."""

import json
import math
import os
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from datetime import timedelta
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from timecycle.errors import InputError
from timecycle.evaluation.davis.results import peak_memory_mb
from timecycle.files import free_name, inside, not_written, write_bytes
from timecycle.training.distributed import World
from timecycle.training.folder import PICTURES
from timecycle.training.settings import Settings
from timecycle.viewing.overlays import write_picture


class Report:
    """The voice of a run's first process; of the others it says and writes nothing.

    Args:
        folder: of the run; log lines of steps after `step`, by a process that was killed, are removed.
        settings: of the run.
        step: steps already taken.
        length: steps of the whole run.
        world: whose first process speaks, and on whose device memory is counted.
    """

    def __init__(self, folder: Path, settings: Settings, step: int, length: int, world: World) -> None:
        self._folder, self._length, self._every, self._batch = folder, length, settings.log_every, settings.batch
        self._device, self._active = world.device, world.first
        self._deadline = time.monotonic() + settings.minutes * 60 if settings.minutes else math.inf
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._seconds = 0.0
        self._listed: set[str] = set()
        self.losses: list[float] = []
        if self._active:
            self._open(step)

    def _open(self, step: int) -> None:
        path = self._path = self._folder / "log.jsonl"
        lines, damaged = kept_lines(path, step)
        self.losses = [float(numbers["loss"]) for numbers in lines if "loss" in numbers]
        if damaged:
            other = free_name(path)
            write_bytes(other, path.read_bytes())
            self.say(f"{path}: {damaged} damaged lines are left out; the log with them is {other.name}")
        write_bytes(path, "".join(json.dumps(numbers) + "\n" for numbers in lines).encode())
        board = inside(self._folder, "tensorboard")
        # A thread of TensorBoard's writes, from now on, and `add_scalar` raises what went wrong there: no need to print
        # it as well.
        self._earlier_hook, threading.excepthook = threading.excepthook, _without_files(threading.excepthook)
        try:
            with _writing(board):
                self._board = SummaryWriter(str(board), purge_step=step + 1)
            with _writing(path):
                self._log = path.open("a", buffering=1)
        except BaseException:
            threading.excepthook = self._earlier_hook
            raise

    def say(self, text: str) -> None:
        """A line on the console."""
        if self._active:
            print(text, flush=True)

    @property
    def late(self) -> bool:
        """Whether the time that the settings give is over."""
        return time.monotonic() > self._deadline

    def step(self, step: int, scalars: dict[str, float], clock: float) -> float:
        """Note the numbers of a step, counted from 1, that began at `time.monotonic` clock; returns what it is now."""
        now = time.monotonic()
        if not self._active:
            return now
        self.losses.append(scalars["loss"])
        self._note(step, scalars, {"samples_per_second": self._batch / max(now - clock, 1e-9)})
        for name, value in scalars.items():
            self._sums[name] += value
        self._count += 1
        self._seconds += now - clock
        if step % self._every == 0 or step == self._length:
            self._line(step)
        return now

    def _line(self, step: int) -> None:
        """Means since the last line, and how it goes."""
        means = {name: total / self._count for name, total in self._sums.items()}
        parts = " ".join(f"{name} {value:.4g}" for name, value in means.items() if name != "loss")
        memory = peak_memory_mb(self._device)
        rate = self._seconds / self._count
        left = max(0.0, min((self._length - step) * rate, self._deadline - time.monotonic()))
        self.say(
            f"step {step}/{self._length}  loss {means['loss']:.4f}  ({parts})  {self._batch / rate:.2f} samples/s  "
            f"{memory.get('device', memory['host']):.0f} MB  {timedelta(seconds=round(left))} left"
        )
        self._sums.clear()
        self._count, self._seconds = 0, 0.0

    def score(self, step: int, value: float) -> None:
        """J&F of an evaluation, in [0, 1]; a line of its own in the log."""
        self.say(f"step {step}: J&F {value:.4f}")
        if self._active:
            self._note(step, {"J&F": value}, {})

    def _note(self, step: int, logged: dict[str, float], others: dict[str, float]) -> None:
        """A line of the log; its numbers and others in TensorBoard. Raises InputError if they cannot be written."""
        with _writing(self._path):
            self._log.write(json.dumps({"step": step, **logged}) + "\n")
        with _writing(self._folder / "tensorboard"):
            for name, value in (logged | others).items():
                self._board.add_scalar(name, value, step)

    def keep(self) -> None:
        """Wait until the log is on disk, before a checkpoint says that its steps are done."""
        if self._active:
            with _writing(self._path):
                os.fsync(self._log.fileno())

    def list_skipped(self, skipped: Counter[str]) -> None:
        """Name clips that were skipped, each once with a reason; `skipped`: how often, by 'name: reason'."""
        for line in sorted(skipped):
            name = line.partition(": ")[0]
            if name not in self._listed:
                self.say(f"skipped {line}")
                self._listed.add(name)

    def picture(self, step: int, rgb: np.ndarray) -> None:
        """Uint8 [H, W, 3], for TensorBoard and as a file."""
        with _writing(self._folder / "tensorboard"):
            self._board.add_image("sample", rgb, step, dataformats="HWC")
        write_picture(inside(self._folder, PICTURES, f"{step:07d}.jpg"), rgb)

    def summary(self) -> str:
        """How the loss went from the first steps to the last."""
        if not self.losses:
            return "no step was taken"
        width = max(1, min(20, len(self.losses) // 4))
        first, last = (float(np.mean(part)) for part in (self.losses[:width], self.losses[-width:]))
        return f"loss: {first:.4f} over the first {width} of {len(self.losses)} steps, {last:.4f} over the last {width}"

    def __enter__(self) -> "Report":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if not self._active:
            return
        with ExitStack() as stack:
            if error:  # which is the reason that counts
                stack.enter_context(suppress(InputError))
            stack.callback(setattr, threading, "excepthook", self._earlier_hook)
            stack.enter_context(_writing(self._folder))
            stack.callback(self._log.close)
            self._board.close()


def kept_lines(path: Path, step: int) -> tuple[list[dict[str, float]], int]:
    """The lines of a log up to a step, each numbers by name, "step" among them; and how many are damaged.

    A last line without an end is none of them: its process was killed. Raises InputError if the log cannot be read.
    """
    if not step or not path.is_file():
        return [], 0
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected the log of the run") from None
    found = [_numbers(line) for line in lines]
    return [numbers for numbers in found if numbers and numbers["step"] <= step], found.count(None)


def _numbers(line: bytes) -> dict[str, float] | None:
    """The numbers of a line of the log; None for one that this program did not write."""
    try:
        found: Any = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(found, dict) or type(found.get("step")) is not int or found["step"] < 1:
        return None
    for name, value in found.items():
        if type(value) not in (int, float) or (name == "loss" and not abs(value) < 1e300):
            return None
    return found


@contextmanager
def _writing(path: Path) -> Iterator[None]:
    """Raise InputError, with the path's name, for what the system does not write."""
    try:
        yield
    except OSError as error:
        raise not_written(path, error) from None


def _without_files(hook: Any) -> Any:
    """A hook for what threads raise, but for OSError."""
    return lambda raised: None if issubclass(raised.exc_type, OSError) else hook(raised)
