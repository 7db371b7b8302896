"""train.py with models of a few thousand parameters, and faults at chosen steps: python -m tests.tiny_training ...

The variable TINY_FAULT names a fault; steps are those of the process, counted from 1:

"signal:NAME:STEP", "signals:NAME:STEP" (two of them), "kill:RANK:STEP" (once, marked by a file `killed`), "nan:STEP",
"worker:NAME:STEP" (a signal to a data loader worker), "raise:NAME:STEP" (a built-in exception), "remove:PATH:STEP"
(a folder). "RANK/" before it restricts it to that rank. When it occurs, "fault at SECONDS", of time.time(), is printed.
"""

import builtins
import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import train
from tests.rendered import render_clip
from timecycle.cli import start
from timecycle.models.encoder import Trunk
from timecycle.training.objectives import OBJECTIVES
from timecycle.training.settings import CropWalkSettings, GridWalkSettings, RunSettings, TimeCycleSettings
from timecycle.viewing.overlays import write_jpeg

CLIPS = 6
# list.txt in the working folder is written by `write_list`.
COMMON = ("--filelist", "list.txt", "--batchSize", "4", "--workers", "0")
WALK = (*COMMON, "--objective", "walk", "--crop-side", "32", "--width", "4", "--steps", "6")
GRID = (*COMMON, "--objective", "walk", "--walk-over", "grid", "--frame-side", "32", "--width", "4", "--steps", "6")
CYCLE = (*COMMON, "--objective", "timecycle", "--frame-side", "64", "--patch-side", "56", "--steps", "4")


def write_list(folder: Path) -> None:
    """Write list.txt and the frames that it lists: `CLIPS` small synthetic videos of 18 frames."""
    lines = []
    for index in range(CLIPS):
        frames = folder / f"clip{index}"
        frames.mkdir(parents=True)
        for number, rgb in enumerate(render_clip(index, 18, 64, 80, 2).images, start=1):
            write_jpeg(frames / f"{number:06d}.jpg", rgb)
        lines.append(f"{frames} 18\n")
    (folder / "list.txt").write_text("".join(lines))


class TinyEncoder(nn.Module):
    """TimeCycle's `Encoder` with a narrow ResNet-18."""

    def __init__(self, width: int = 4, channels: int = 16) -> None:
        super().__init__()
        self.trunk = Trunk(18, padding="reflect", width=width)
        self.head = nn.Conv2d(self.trunk.channels, channels, 1, bias=False)
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        """[B, 3, H, W] -> [B, channels, H / 8, W / 8]."""
        return functional.normalize(functional.relu(self.head(self.trunk(images))), dim=1)


class Fault:
    """A forward hook that causes the fault of TINY_FAULT."""

    def __init__(self, text: str) -> None:
        rank, _, fault = text.rpartition("/")
        self.kind, *self.words = fault.split(":") if rank in ("", os.environ.get("RANK")) else [""]
        self.calls = 0

    def __call__(self, module: nn.Module, inputs: Any, losses: Any) -> Any:
        """Count a forward pass; cause the fault at its step."""
        self.calls += 1
        if not self.kind or self.calls != int(self.words[-1]):
            return losses
        if self.kind != "kill":
            print(f"fault at {time.time()}", flush=True)
        if self.kind == "nan":
            with torch.no_grad():  # as after a batch of NaN
                module.get_submodule("encoder.bn1").running_mean.data.fill_(float("nan"))
            return replace(losses, total=losses.total * float("nan"))
        if self.kind == "raise":
            raise getattr(builtins, self.words[0])("this is how it ends")
        if self.kind == "remove":
            shutil.rmtree(self.words[0])
        if self.kind in ("signal", "signals"):
            for _ in range(1 + (self.kind == "signals")):
                os.kill(os.getpid(), signal.Signals[self.words[0]])
                time.sleep(0)  # lets the interpreter handle one before the next is sent
        if self.kind == "worker":
            os.kill(multiprocessing.active_children()[0].pid or 0, signal.Signals[self.words[0]])
            time.sleep(0.5)
        marker = Path("killed")
        if self.kind == "kill" and os.environ.get("RANK") == self.words[0] and not marker.exists():
            marker.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return losses


def faulty(build: Callable[[RunSettings], nn.Module]) -> Callable[[RunSettings], nn.Module]:
    """A factory of models with faults."""

    def made(settings: RunSettings) -> nn.Module:
        model = build(settings)
        if settings.objective == "timecycle":
            model.encoder = TinyEncoder()
        model.register_forward_hook(Fault(os.environ.get("TINY_FAULT", "")))
        return model

    return made


for kind in (TimeCycleSettings, CropWalkSettings, GridWalkSettings):
    OBJECTIVES[kind] = replace(OBJECTIVES[kind], model=faulty(OBJECTIVES[kind].model))
OBJECTIVES[TimeCycleSettings] = replace(OBJECTIVES[TimeCycleSettings], encoder=lambda settings: TinyEncoder())


if __name__ == "__main__":
    torch.set_num_threads(1)
    start(train.main)
