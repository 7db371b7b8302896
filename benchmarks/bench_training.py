"""A step of TimeCycle's training against the published program's order of operations (plain_training.py).

B = 2 samples, T = 4 base frames, a patch of 80 px, float32. Memory is measured in a process of its own, whose allocator
returns freed memory at once, beyond what was in use before the call. It includes the gradients of features and
weights, whose size is `gradients_mb`.
"""

import copy
import json
import os
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import plain_training
from benchmarks.compare import compare, peak_mb
from timecycle.models.timecycle import TimeCycle

SAMPLES, LENGTH, PATCH = 2, 4, 80
RIVAL = "the published order, plain forms"
MALLOC = {"MALLOC_MMAP_THRESHOLD_": str(2**18)}  # larger blocks are returned to the system when freed


def made_theta() -> Tensor:
    """Affine maps of the patches, [B, 2, 3]."""
    angle = torch.linspace(-0.5, 0.6, SAMPLES)
    cosine, sine = angle.cos() / 3, angle.sin() / 3
    return torch.stack([torch.stack([cosine, -sine, angle], 1), torch.stack([sine, cosine, -angle], 1)], 1)


def smooth(generator: torch.Generator, images: int, channels: int, side: int, coarse: int) -> Tensor:
    """Random maps [images, channels, side, side] that vary smoothly in space."""
    fields = torch.randn(images, channels, coarse, coarse, generator=generator)
    return functional.interpolate(fields, (side, side), mode="bilinear", align_corners=True)


class LossPart:
    """The losses and their gradients from the same features, in both forms."""

    def __init__(self, side: int) -> None:
        torch.manual_seed(0)
        generator, positions = torch.Generator().manual_seed(0), side // 8
        self.model, self.theta = TimeCycle(side, PATCH), made_theta()
        base, target = (
            smooth(generator, images, 512, positions, 8).relu().requires_grad_()
            for images in (LENGTH * SAMPLES, SAMPLES)
        )
        patch = smooth(generator, SAMPLES, 512, PATCH // 8, 4).relu().requires_grad_()
        rows = [x.detach().flatten(2).transpose(1, 2).contiguous().requires_grad_() for x in (base, patch, target)]
        self.rows = [rows[0].detach().unflatten(0, (LENGTH, SAMPLES)).requires_grad_(), *rows[1:]]
        images = base.unflatten(0, (LENGTH, SAMPLES)).transpose(0, 1).contiguous().requires_grad_()
        self.images = [images, patch, target]
        self.convolution = self.model.localizer.convolution().detach().requires_grad_()
        self.taps, *self.rest = self.model.localizer.parameters()
        self.maps: Tensor | None = None

    @property
    def gradients_mb(self) -> float:
        """Size of the gradients of features and weights."""
        return round(sum(x.numel() * 4 for x in (*self.images, self.taps, *self.rest)) / 1e6, 1)

    def ours(self) -> tuple[Tensor, ...]:
        """Gradients of features and weights, by our operators."""
        total = self.model.losses_of(*self.rows, self.theta).total
        return torch.autograd.grad(total, [*self.rows, self.taps, *self.rest])

    def plain(self) -> tuple[Tensor, ...]:
        """The same by the plain forms, from features as images and the first convolution's own weights."""
        if self.maps is None:
            self.maps = plain_training.identity_maps(round(self.taps.shape[1] ** 0.5))
        losses = plain_training.losses_of(self.model, self.convolution, *self.images, self.theta, self.maps)
        return torch.autograd.grad(losses[0], [*self.images, self.convolution, *self.rest])

    def check(self) -> None:
        """Compare the gradients of both forms."""
        ours, plain = list(self.ours()), list(self.plain())
        ours[0] = ours[0].transpose(0, 1)
        for i in range(3):
            plain[i] = plain[i].flatten(-2).transpose(-1, -2)
        plain[3] = self.model.localizer.taps_of(plain[3])
        for mine, theirs in zip(ours, plain, strict=True):
            torch.testing.assert_close(mine, theirs, atol=1e-4 * float(theirs.abs().max()), rtol=0)


def peak_in_a_process(side: int, which: str) -> float | None:
    """Peak memory in MB of one call of LossPart(side).ours or .plain, beyond what was in use before it."""
    command = [sys.executable, "-m", "benchmarks.bench_training", str(side), which]
    environment = os.environ | MALLOC | {"OMP_NUM_THREADS": str(torch.get_num_threads())}
    return json.loads(subprocess.run(command, env=environment, capture_output=True, text=True, check=True).stdout)


@pytest.mark.parametrize("side", [240, 480])
def bench_losses(benchmark, side):
    """The losses and their gradients from features."""
    part = LossPart(side)
    part.check()
    benchmark.extra_info["gradients_mb"] = part.gradients_mb
    peaks = {"ours": peak_in_a_process(side, "ours"), RIVAL: peak_in_a_process(side, "plain")}
    compare(benchmark, part.ours, {RIVAL: part.plain}, rounds=5 if side == 240 else 2, warm=False, peaks=peaks)


def bench_losses_of_large_frames(benchmark):
    """The same at 960 px, without the plain form, whose identity maps alone take 0.8 GB."""
    part = LossPart(960)
    benchmark.extra_info["gradients_mb"] = part.gradients_mb
    compare(benchmark, part.ours, {}, rounds=1, warm=False, peaks={"ours": peak_in_a_process(960, "ours")})


def bench_step(benchmark):
    """A whole step at 240 px: encoder, losses and gradients; ours in channels_last, train.py's default."""
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    model, theta = TimeCycle(240, PATCH), made_theta()
    frames = smooth(generator, SAMPLES * LENGTH, 3, 240, 20).unflatten(0, (SAMPLES, LENGTH))
    target, patch = smooth(generator, SAMPLES, 3, 240, 20), smooth(generator, SAMPLES, 3, PATCH, 8)
    convolution = model.localizer.convolution().detach().requires_grad_()
    maps = plain_training.identity_maps(30)
    published = copy.deepcopy(model)
    model.encoder.trunk.to(memory_format=torch.channels_last)

    def ours() -> tuple[Tensor, ...]:
        total = model.losses(frames, target, patch, theta).total
        return torch.autograd.grad(total, [*model.encoder.parameters(), model.localizer.taps])

    def plain() -> tuple[Tensor, ...]:
        total = plain_training.losses(published, convolution, frames, target, patch, theta, maps)
        return torch.autograd.grad(total, [*published.encoder.parameters(), convolution])

    for mine, theirs in zip(ours()[:-1], plain()[:-1], strict=True):
        norm = float(theirs.norm())
        assert float(mine.norm()) == pytest.approx(norm, rel=5e-3)
    compare(benchmark, ours, {RIVAL: plain}, rounds=2, warm=False)


def main() -> None:
    """Print the memory that one call takes: SIDE ours|plain."""
    part = LossPart(int(sys.argv[1]))
    call: Callable[[], object] = getattr(part, sys.argv[2])
    call()  # one-time allocations, such as thread pools, do not count
    print(json.dumps(peak_mb(call)))


if __name__ == "__main__":
    main()
