"""Training operators checked and timed on a GPU: python -m benchmarks.gpu_training.

attention, and TimeCycle's losses and training step, against their plain forms. Figures are per call; losses and steps
are forward and backward.
"""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from benchmarks import plain_training
from benchmarks.gpu_setting import device as device_of
from benchmarks.gpu_setting import not_interpreted, say
from benchmarks.gpu_timing import DTYPES, TINY, measure, multiplied_as, one_line, peak_mb, rotation
from timecycle.errors import run_command_line
from timecycle.models.encoder import STRIDE
from timecycle.models.timecycle import TimeCycle
from timecycle.models.tracking import KERNEL, TEMPERATURE, WIDTH
from timecycle.ops import attention

CHANNELS = 512  # of the features
SECONDS = 0.3  # of a timing
# Relative to the largest element: bfloat16 keeps 8 bits of the softmax, TF32 11 bits of every factor.
TOLERANCE = {"bfloat16": 2e-2, "float16": 5e-3, "tf32": 5e-3, "float32": 1e-5}


@dataclass(frozen=True)
class Attention:
    """A call of attention. With a side, values are a convolution's over side x side queries; else one per sample."""

    name: str
    precision: str
    samples: int
    queries: int
    keys: int
    channels: int
    values: int
    side: int | None

    @property
    def shifts(self) -> list[int]:
        """The taps of the convolution as shifts of the queries; [0] without one."""
        taps = range(KERNEL)
        return [0] if self.side is None else [dy * self.side + dx for dy, dx in itertools.product(taps, taps)]

    @property
    def operations(self) -> tuple[int, int]:
        """Operations of forward and backward, which recomputes the logits."""
        logits = 2 * self.samples * self.queries * self.keys * self.channels
        rows = self.queries - max(self.shifts)
        out = 2 * self.samples * len(self.shifts) * rows * self.keys * self.values
        return logits + out, 3 * logits + 2 * out

    def inputs(self, seed: int, device: torch.device) -> list[Tensor]:
        """Query, key and value as leaves; features have unit norm."""
        generator = torch.Generator(device).manual_seed(seed)
        shapes: list[tuple[int, ...]] = [(self.samples, n, self.channels) for n in (self.queries, self.keys)]
        shared = () if self.side is not None else (self.samples,)
        shapes.append((*shared, len(self.shifts), self.keys, self.values))
        made = [torch.randn(shape, generator=generator, device=device) for shape in shapes]
        made[:2] = [functional.normalize(features.relu_(), dim=2) for features in made[:2]]
        return [x.to(DTYPES[self.precision]).requires_grad_() for x in made]

    def run(self, query: Tensor, key: Tensor, value: Tensor, backend: str | None = None) -> tuple[Tensor, Tensor]:
        """The timed call."""
        return attention(query, key, value, temperature=TEMPERATURE, shifts=self.shifts, backend=backend)

    def plain(self, query: Tensor, key: Tensor, value: Tensor) -> Tensor:
        """The materialized form in PyTorch."""
        affinity = (query @ key.mT / TEMPERATURE).softmax(dim=2)
        if self.side is None:
            return affinity @ value[:, 0]
        weight = value.permute(2, 1, 0).unflatten(2, (KERNEL, KERNEL))
        return functional.conv2d(affinity.mT.unflatten(2, (self.side, self.side)), weight)


def first(query: Tensor, key: Tensor, value: Tensor) -> list[Tensor]:
    """The first sample's part of a call's inputs, or of tensors of their shapes."""
    return [query[:1], key[:1], value[:1] if value.ndim == 4 else value]


def check(case: Attention, inputs: list[Tensor]) -> None:
    """Compare the first sample's outputs and gradients with the float64 reference; AssertionError if they differ."""
    results = case.run(*inputs)
    gradients = [torch.zeros_like(result) for result in results]
    for gradient in gradients:
        gradient[:1] = torch.randn_like(gradient[:1])
    ours = [*(result[:1] for result in results), *first(*torch.autograd.grad(results, inputs, gradients))]
    leaves = [x.detach().double().requires_grad_() for x in first(*inputs)]
    exact = case.run(*leaves, backend="reference")
    exact += torch.autograd.grad(exact, leaves, [gradient[:1].double() for gradient in gradients])
    for found, wanted in zip(ours, exact, strict=True):
        atol = TOLERANCE[case.precision] * float(wanted.detach().abs().max())
        torch.testing.assert_close(found.double(), wanted, atol=atol, rtol=0)


def run_attention(case: Attention, device: torch.device) -> Iterator[dict[str, Any]]:
    """Check a call, then time it and its plain form, forward and backward."""
    with multiplied_as(case.precision):
        sets = [case.inputs(0, device)]
        check(case, sets[0])
        sets += [case.inputs(seed, device) for seed in range(1, rotation(sum(x.nbytes for x in sets[0]), device))]
        forms: dict[str, Callable[..., Any]] = {"ours": lambda *x: case.run(*x)[0], "plain": case.plain}
        for name, operations, backward in zip(("forward", "backward"), case.operations, (False, True), strict=True):
            found: dict[str, Any] = {"name": f"{case.name}, {case.precision}, {name}", "operations": operations}
            for form, function in forms.items():
                calls = list(_calls(function, sets, backward))
                found[form] = measure(calls, device, SECONDS) | {"peak_mb": peak_mb(calls[0], device)}
            yield found | {"us": found["ours"]["us"], "tflops": round(operations / found["ours"]["us"] / 1e6, 2)}


def _calls(function: Callable[..., Tensor], sets: list[list[Tensor]], backward: bool) -> Iterator[Callable[[], object]]:
    for inputs in sets[: 2 if backward else None]:
        if backward:
            out = function(*inputs)
            gradient = torch.randn_like(out)
            yield lambda o=out, i=inputs, g=gradient: torch.autograd.grad(o, i, g, retain_graph=True)
        else:
            detached = [x.detach() for x in inputs]
            yield lambda i=detached: function(*i)


@dataclass(frozen=True)
class Learning:
    """TimeCycle's losses from random features, or (`whole`) from random images, forward and backward."""

    name: str
    whole: bool
    samples: int
    side: int = 240
    """Pixels, as `patch`."""
    patch: int = 80
    length: int = 4
    precision: str = "tf32"

    def forms(self, device: torch.device) -> dict[str, Callable[[], Tensor]]:
        """Functions that compute the total loss of the same model and input: our form and the plain one."""
        torch.manual_seed(0)
        model = TimeCycle(self.side, self.patch).to(device)
        *images, theta = batch(self.samples, self.side, self.patch, self.length, device)
        side, small = self.side // STRIDE, self.patch // STRIDE
        maps = plain_training.identity_maps(side).to(device)
        convolution = model.localizer.convolution().detach().requires_grad_()
        if self.whole:
            return {
                "ours": lambda: model.losses(*images, theta).total,
                "plain": lambda: plain_training.losses(model, convolution, *images, theta, maps),
            }
        wide = (self.samples, side**2)
        shapes = ((self.length, *wide), (self.samples, small**2), wide)
        base, patch, target = (
            torch.randn((*shape, CHANNELS), device=device).relu_().requires_grad_() for shape in shapes
        )

        def plain() -> Tensor:
            rows = ((base.transpose(0, 1), side), (patch, small), (target, side))
            features = (x.mT.unflatten(-1, (s, s)) for x, s in rows)
            return plain_training.losses_of(model, convolution, *features, theta, maps)[0]

        return {"ours": lambda: model.losses_of(base, patch, target, theta).total, "plain": plain}


def batch(samples: int, side: int, patch: int, length: int, device: torch.device, seed: int = 0) -> list[Tensor]:
    """Random frames, target, patch and theta, as TimeCycle.losses takes them."""
    generator = torch.Generator(device).manual_seed(seed)
    sizes = ((length, 3, side, side), (3, side, side), (3, patch, patch))
    images = [torch.randn((samples, *size), generator=generator, device=device) for size in sizes]
    theta = torch.tensor([[1 / 3, 0, 0.1], [0, 1 / 3, -0.2]], device=device).expand(samples, -1, -1)
    return [*images, theta]


def run_learning(case: Learning, device: torch.device) -> Iterator[dict[str, Any]]:
    """Compare the totals of both forms, then time each, forward and backward."""
    found: dict[str, Any] = {"name": f"{case.name}, {case.precision}"}
    with multiplied_as(case.precision), not_interpreted():
        forms = case.forms(device)
        ours, plain = (forms[form]().detach() for form in ("ours", "plain"))
        torch.testing.assert_close(ours, plain, atol=5e-3 if case.precision == "tf32" else 1e-4, rtol=0)
        for form, total in forms.items():

            def call(total: Callable[[], Tensor] = total) -> None:
                total().backward()

            found[form] = measure([call], device, SECONDS) | {"peak_mb": peak_mb(call, device)}
    yield found | {"us": found["ours"]["us"]}


def cases() -> list[Attention | Learning]:
    """The cases that are timed."""
    localizer = Attention("attention, localizer at 240 px, 36 samples", "bfloat16", 36, 100, 900, CHANNELS, WIDTH, 10)
    found: list[Attention | Learning] = [
        *(replace(localizer, precision=precision) for precision in ("bfloat16", "tf32", "float32")),
        Attention("attention, chain of 900 nodes, 16 samples", "bfloat16", 16, 900, 900, 128, 900, None),
        Learning("TimeCycle's losses at 240 px, 36 samples", False, 36),
        Learning("TimeCycle's losses at 480 px, 2 samples", False, 2, 480),
        Learning("TimeCycle's step at 240 px, 8 samples", True, 8),
    ]
    return [smaller(case) for case in found] if TINY else found


def smaller(case: Attention | Learning) -> Attention | Learning:
    """A small case of the same kind, for a CPU."""
    if isinstance(case, Learning):
        return replace(case, samples=1, side=64, patch=56, length=1)
    queries, side = (9, None) if case.side is None else (64, 8)
    return replace(case, samples=2, queries=queries, keys=9, channels=16, values=5, side=side)


def once(case: Attention | Learning, device: torch.device) -> None:
    """Run forward and backward once without timing."""
    with multiplied_as(case.precision):
        total = case.run(*case.inputs(0, device))[0] if isinstance(case, Attention) else case.forms(device)["ours"]()
        total.sum().backward()


def run(device: torch.device) -> Iterator[dict[str, Any]]:
    """Yield the figures of every case, or its error."""
    for case in cases():
        if device.type == "cuda":
            torch.cuda.empty_cache()
        try:
            yield from run_attention(case, device) if isinstance(case, Attention) else run_learning(case, device)
        except Exception as error:
            yield {"name": case.name, "error": one_line(error)}


def main() -> None:
    """Print every figure."""
    for found in run(device_of()):
        say(found)


if __name__ == "__main__":
    run_command_line(main)
