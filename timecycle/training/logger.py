"""Rank-0 logger: console, JSONL with a line per step and per validation, TensorBoard, images."""

import json
import math
import os
import threading
import time
from collections import Counter, defaultdict
from contextlib import ExitStack, suppress
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, Optional

import numpy as np

from timecycle.errors import InputError
from timecycle.files import free_name, inside, write_bytes, writing
from timecycle.progress import say
from timecycle.provenance import peak_memory_mb
from timecycle.training.curves import SCORE, Curves
from timecycle.training.distributed import Distributed
from timecycle.training.run_folder import IMAGES, SETTINGS, Run
from timecycle.training.settings import RunSettings
from timecycle.viewing.overlays import write_jpeg

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter


class RunLogger:
    """Logs a run on rank 0; on other ranks every method does nothing.

    step: steps already taken; later lines of the log in `folder`, which a killed process left, are removed.
    length: steps of the whole run.
    """

    def __init__(self, folder: Path, settings: RunSettings, step: int, length: int, distributed: Distributed) -> None:
        self._folder, self._length, self._every, self._batch = folder, length, settings.log_every, settings.batch
        self._device, self._active = distributed.device, distributed.is_rank_zero
        self._deadline = time.monotonic() + settings.minutes * 60 if settings.minutes else math.inf
        self._sums: dict[str, float] = defaultdict(float)
        self._count = 0
        self._seconds = 0.0
        self._listed: set[str] = set()
        self.losses: list[float] = []
        self.curves = Curves()
        """What is in the log, for the page."""
        self._first, self._begun = step, time.monotonic()
        self._busy = 0.0
        if self._active:
            self._open(step)

    def _open(self, step: int) -> None:
        path = self._path = self._folder / "log.jsonl"
        lines, damaged = kept_lines(path, step)
        self.losses = [float(numbers["loss"]) for numbers in lines if "loss" in numbers]
        self.curves = curves_of(lines)
        if damaged:
            other = free_name(path)
            write_bytes(other, path.read_bytes())
            self.info(f"{path}: {damaged} damaged lines are left out; the log with them is {other.name}")
        write_bytes(path, "".join(json.dumps(numbers) + "\n" for numbers in lines).encode())
        board = inside(self._folder, "tensorboard")
        # TensorBoard writes in a thread, whose errors `add_scalar` raises; the thread need not print them too.
        self._earlier_hook, threading.excepthook = threading.excepthook, _ignoring_os_errors(threading.excepthook)
        try:
            with writing(board):
                self._board = self._open_board(board, step)
            with writing(path):
                self._log = path.open("a", buffering=1)
        except BaseException:
            threading.excepthook = self._earlier_hook
            raise

    def _open_board(self, board: Path, step: int) -> Optional["SummaryWriter"]:
        """TensorBoard's writer; None, and a message, if it is not installed."""
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            self.info("TensorBoard's files are left out: it is not installed (pip install tensorboard)")
            return None
        return SummaryWriter(str(board), purge_step=step + 1)

    def info(self, text: str) -> None:
        """Print a line."""
        if self._active:
            say(text)

    def log_setup(self, run: Run, settings: RunSettings, step: int, clips: int, lost: str | None) -> None:
        """Print data, checkpoint and settings of the run; `lost`: what `start_run` returned."""
        if not settings.filelist and not settings.videos:
            self.info(
                "no data given: learning from synthetic video, at sizes for a demonstration (--filelist, --videos)"
            )
        if run.passed_over:
            self.info(f"passed over: {run.passed_over}")
        if run.path:
            self.info(f"going on from {run.path}, step {step}")
        if lost:
            self.info(lost)
        self.info(f"settings (kept in {run.folder / SETTINGS}):\n{settings.table()}")
        self.info(f"{clips} clips from {settings.source}; {self._length} steps of {settings.batch} samples")

    @property
    def out_of_time(self) -> bool:
        """Whether --minutes have passed."""
        return time.monotonic() > self._deadline

    def log_step(self, step: int, scalars: dict[str, float], clock: float) -> float:
        """Log a step, counted from 1, that began at `time.monotonic()` == clock; returns the time now."""
        now = time.monotonic()
        if not self._active:
            return now
        self.losses.append(scalars["loss"])
        self._write(step, scalars, {"samples_per_second": self._batch / max(now - clock, 1e-9)})
        for name, value in scalars.items():
            self._sums[name] += value
        self._count += 1
        self._seconds += now - clock
        self._busy += now - clock
        if step % self._every == 0 or step == self._length:
            self._print_progress(step)
        return now

    def _print_progress(self, step: int) -> None:
        """Print means since the last console line, speed, memory and time left."""
        means = {name: total / self._count for name, total in self._sums.items()}
        parts = " ".join(f"{name} {value:.4g}" for name, value in means.items() if name != "loss")
        memory = peak_memory_mb(self._device)
        rate = self._seconds / self._count
        left = max(0.0, min((self._length - step) * rate, self._deadline - time.monotonic()))
        self.info(
            f"step {step}/{self._length}  loss {means['loss']:.4f}  ({parts})  {self._batch / rate:.2f} samples/s  "
            f"{memory.get('device', memory['host']):.0f} MB  {timedelta(seconds=round(left))} left"
        )
        self._sums.clear()
        self._count, self._seconds = 0, 0.0

    def log_scores(self, step: int, scores: dict[str, float]) -> None:
        """Log the J&F, J and F of a validation, in [0, 1], as a line of their own."""
        self.info(f"step {step}: J&F {scores[SCORE]:.4f}")
        if self._active:
            self._write(step, scores, {})

    def _write(self, step: int, logged: dict[str, float], others: dict[str, float]) -> None:
        """Write a line of the log, and its numbers and others to TensorBoard. Raises InputError if that fails."""
        self.curves.add(step, logged)
        with writing(self._path):
            self._log.write(json.dumps({"step": step, **logged}) + "\n")
        if self._board:
            with writing(self._folder / "tensorboard"):
                for name, value in (logged | others).items():
                    self._board.add_scalar(name, value, step)

    def flush(self) -> None:
        """Sync the log to disk, before a checkpoint with its steps is saved."""
        if self._active:
            with writing(self._path):
                os.fsync(self._log.fileno())

    def log_skipped(self, skipped: Counter[str]) -> None:
        """Print skipped clips, each once with its reason; `skipped`: counts by 'name: reason'."""
        for line in sorted(skipped):
            name = line.partition(": ")[0]
            if name not in self._listed:
                self.info(f"skipped {line}")
                self._listed.add(name)

    def log_image(self, step: int, rgb: np.ndarray) -> None:
        """Write an RGB uint8 image [H, W, 3] to TensorBoard and as JPEG."""
        if self._board:
            with writing(self._folder / "tensorboard"):
                self._board.add_image("sample", rgb, step, dataformats="HWC")
        write_jpeg(inside(self._folder, IMAGES, f"{step:07d}.jpg"), rgb)

    def speed(self) -> dict[str, float]:
        """Of this process so far: the last step, seconds of the whole run, and samples per second of its steps."""
        steps = self.curves.last - self._first
        rate = {"samples_per_second": round(steps * self._batch / self._busy, 3)} if self._busy else {}
        return {"to_step": self.curves.last, "seconds": round(time.monotonic() - self._begun, 1), **rate}

    def summary(self) -> str:
        """A sentence with the mean losses of the first and the last steps."""
        if not self.losses:
            return "no step was taken"
        width = max(1, min(20, len(self.losses) // 4))
        first, last = (float(np.mean(part)) for part in (self.losses[:width], self.losses[-width:]))
        return f"loss: {first:.4f} over the first {width} of {len(self.losses)} steps, {last:.4f} over the last {width}"

    def __enter__(self) -> "RunLogger":
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if not self._active:
            return
        with ExitStack() as stack:
            if error:  # report this one
                stack.enter_context(suppress(InputError))
            stack.callback(setattr, threading, "excepthook", self._earlier_hook)
            stack.enter_context(writing(self._folder))
            stack.callback(self._log.close)
            if self._board:
                self._board.close()


def kept_lines(path: Path, step: int) -> tuple[list[dict[str, float]], int]:
    """The lines of a log up to a step, as numbers by name including "step", and the number of damaged lines.

    A last line without a newline, of a killed process, is ignored. Raises InputError if the log cannot be read.
    """
    if not step or not path.is_file():
        return [], 0
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror}); expected the log of the run") from None
    found = [_numbers(line) for line in lines]
    return [numbers for numbers in found if numbers and numbers["step"] <= step], found.count(None)


def curves_of(lines: list[dict[str, float]]) -> Curves:
    """The curves of the lines of a log, as `kept_lines` returns them."""
    curves = Curves()
    for numbers in lines:
        curves.add(int(numbers["step"]), {name: value for name, value in numbers.items() if name != "step"})
    return curves


def _numbers(line: bytes) -> dict[str, float] | None:
    """The numbers of a line of the log; None if this program did not write it."""
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


def _ignoring_os_errors(hook: Any) -> Any:
    """A `threading.excepthook` that ignores OSError."""
    return lambda raised: None if issubclass(raised.exc_type, OSError) else hook(raised)
