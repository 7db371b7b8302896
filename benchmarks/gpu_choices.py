"""What decides how train.py multiplies on a GPU by default: python -m benchmarks.gpu_choices.

TimeCycle's whole step, forward and backward, as train.py prepares it: float32, TF32, and the trunk in bfloat16
(--autocast). Each is timed, and its loss and gradient compared with those of the same weights and images in float64.
How much a gradient differs from that of another batch is the noise that the differences count against.
"""

import copy
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_setting import TINY, attempt, device, not_interpreted
from benchmarks.gpu_timing import measure, multiplied_as, peak_mb
from timecycle.errors import run_command_line
from timecycle.models.timecycle import TimeCycle
from timecycle.training.distributed import Distributed
from timecycle.training.precision import prepare_model
from timecycle.training.settings import RunSettings

SAMPLES, SIDE, PATCH, LENGTH = (1, 64, 56, 1) if TINY else (8, 240, 80, 4)
WAYS: dict[str, tuple[str, dict[str, bool]]] = {
    "float32": ("float32", {}),
    "TF32": ("tf32", {}),
    "TF32, trunk in bfloat16": ("tf32", {"autocast": True}),
    "TF32, trunk in bfloat16, channels outermost": ("tf32", {"autocast": True, "channels_last": False}),
}
"""How PyTorch multiplies float32, and fields of train.py's settings."""


def batch(seed: int, where: torch.device) -> list[Tensor]:
    """Frames, target, patch and theta, as TimeCycle.losses takes them."""
    generator = torch.Generator(where).manual_seed(seed)
    sizes = ((LENGTH, 3, SIDE, SIDE), (3, SIDE, SIDE), (3, PATCH, PATCH))
    images = [torch.randn((SAMPLES, *size), generator=generator, device=where) for size in sizes]
    theta = torch.tensor([[1 / 3, 0, 0.1], [0, 1 / 3, -0.2]], device=where).expand(SAMPLES, -1, -1)
    return [*images, theta]


def step(model: TimeCycle, inputs: list[Tensor]) -> tuple[Tensor, Tensor]:
    """The loss, and the gradient of all weights in one row."""
    model.zero_grad()
    total = model.losses(*inputs).total
    total.backward()
    gradients = [p.grad.flatten() for p in model.parameters() if p.grad is not None]
    return total.detach(), torch.cat(gradients).double()


def apart(ours: Tensor, exact: Tensor) -> float:
    """How far a gradient is from another, of the other's length."""
    return round(float((ours - exact).norm() / exact.norm()), 6)


def way(name: str, plain: TimeCycle, exact: tuple[Tensor, Tensor], where: torch.device) -> dict[str, Any]:
    """Time a way, and compare it."""
    precision, fields = WAYS[name]
    inputs = batch(0, where)
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
    """Every way, and the noise."""
    where = device()
    with not_interpreted():
        torch.manual_seed(0)
        plain = TimeCycle(SIDE, PATCH).to(where).train()
        batches = [[x.double() for x in batch(seed, where)] for seed in (0, 1)]
        exact, other = (step(copy.deepcopy(plain).double(), inputs) for inputs in batches)
        attempt("step, another batch in float64", lambda: {"gradient apart": apart(other[1], exact[1])})
        for name in list(WAYS)[::2] if TINY else WAYS:
            attempt(f"step, {name}", partial(way, name, plain, exact, where))


if __name__ == "__main__":
    run_command_line(main)
