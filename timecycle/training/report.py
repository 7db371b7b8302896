"""What a run says: console lines, a log with a line for each step and each evaluation, TensorBoard, pictures."""

import json
import math
import time
from collections import Counter, defaultdict
from datetime import timedelta
from pathlib import Path
from types import TracebackType

import numpy as np
from torch.utils.tensorboard import SummaryWriter

from timecycle.files import write_bytes
from timecycle.overlay import write_picture
from timecycle.results import peak_memory_mb
from timecycle.training.distributed import World
from timecycle.training.settings import Settings


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
            kept = self._kept_lines(step)
            self.losses = [numbers["loss"] for numbers in map(json.loads, kept) if "loss" in numbers]
            write_bytes(folder / "log.jsonl", "".join(kept).encode())
            self._log = (folder / "log.jsonl").open("a", buffering=1)
            self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=step + 1)

    def _kept_lines(self, step: int) -> list[str]:
        path = self._folder / "log.jsonl"
        lines = path.read_text().splitlines(keepends=True) if step and path.is_file() else []
        whole = [line for line in lines if line.endswith("\n")]  # the last may have been cut off
        return [line for line in whole if json.loads(line)["step"] <= step]

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
        self._log.write(json.dumps({"step": step, **scalars}) + "\n")
        for name, value in scalars.items():
            self._board.add_scalar(name, value, step)
            self._sums[name] += value
        self._board.add_scalar("samples_per_second", self._batch / (now - clock), step)
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
            self._log.write(json.dumps({"step": step, "J&F": value}) + "\n")
            self._board.add_scalar("J&F", value, step)

    def list_skipped(self, skipped: Counter[str]) -> None:
        """Name clips that were skipped, each once with a reason; `skipped`: how often, by 'name: reason'."""
        for line in sorted(skipped):
            name = line.partition(": ")[0]
            if name not in self._listed:
                self.say(f"skipped {line}")
                self._listed.add(name)

    def picture(self, step: int, rgb: np.ndarray) -> None:
        """Uint8 [H, W, 3], for TensorBoard and as a file."""
        self._board.add_image("sample", rgb, step, dataformats="HWC")
        write_picture(self._folder / "pictures" / f"{step:07d}.jpg", rgb)

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
        if self._active:
            self._log.close()
            self._board.close()
