"""Precisions of train.py on a GPU, on which its default is based: python -m benchmarks.gpu_choices.

TimeCycle's training step, forward and backward, as train.py prepares it: float32, TF32, and the trunk in bfloat16
(--autocast). Each is timed, and its loss and gradient are compared with float64's of the same weights and images. The
difference between the gradients of two batches is printed as the noise level to compare with.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_setting import TINY, attempt, device, not_interpreted
from benchmarks.gpu_timing import measure, multiplied_as, peak_mb
from benchmarks.gpu_training import batch
from timecycle.errors import run_command_line
from timecycle.models.timecycle import TimeCycle
from timecycle.training.distributed import Distributed
from timecycle.training.objectives import prepare_model
from timecycle.training.settings import RunSettings

SAMPLES, SIDE, PATCH, LENGTH = (1, 64, 56, 1) if TINY else (8, 240, 80, 4)
WAYS: dict[str, tuple[str, dict[str, bool]]] = {
    "float32": ("float32", {}),
    "TF32": ("tf32", {}),
    "TF32, trunk in bfloat16": ("tf32", {"autocast": True}),
    "TF32, trunk in bfloat16, channels outermost": ("tf32", {"autocast": True, "channels_last": False}),
}
"""The precision for `multiplied_as`, and fields of train.py's settings."""


def step(model: TimeCycle, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of all weights as one vector, float64."""
    model.zero_grad()
    total = model.losses(*inputs).total
    total.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return total.detach(), torch.cat(gradients).double()


def apart(ours: Tensor, exact: Tensor) -> float:
    """Relative distance of a gradient from the exact one."""
    return round(float((ours - exact).norm() / exact.norm()), 6)


def way(name: str, plain: TimeCycle, exact: tuple[Tensor, Tensor], where: torch.device) -> dict[str, Any]:
    """Time one of WAYS and compare it with float64."""
    precision, fields = WAYS[name]
    inputs = batch(SAMPLES, SIDE, PATCH, LENGTH, where)
    with multiplied_as(precision):
        model = prepare_model(copy.deepcopy(plain), RunSettings(**fields), Distributed(0, 1, where))
        loss, gradient = step(model, inputs)
        timing = measure([partial(step, model, inputs)], where)
        peak = peak_mb(partial(step, model, inputs), where)
    return {
        "us": timing["us"],
        "peak_mb": peak,
        "loss apart": round(float((loss - exact[0]).abs()), 6),
        "gradient apart": apart(gradient, exact[1]),
    }


def main() -> None:
    """Run all of WAYS, and measure the noise level."""
    where = device()
    with not_interpreted():
        torch.manual_seed(0)
        plain = TimeCycle(SIDE, PATCH).to(where).train()
        batches = [[x.double() for x in batch(SAMPLES, SIDE, PATCH, LENGTH, where, seed)] for seed in (0, 1)]
        exact, other = (step(copy.deepcopy(plain).double(), inputs) for inputs in batches)
        attempt("step, another batch in float64", lambda: {"gradient apart": apart(other[1], exact[1])})
        for name in list(WAYS)[::2] if TINY else WAYS:
            attempt(f"step, {name}", partial(way, name, plain, exact, where))


if __name__ == "__main__":
    run_command_line(main)
