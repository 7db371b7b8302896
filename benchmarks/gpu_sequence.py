"""propagate_sequence checked and timed: labels through a whole video whose affinities are known.

Weights and indices of a hundred frames take some 170 MB, more than any L2 cache, so inputs are not rotated.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu_timing import measure, peak_mb
from timecycle.ops import propagate_labels, propagate_sequence
from timecycle.ops.propagate_sequence import rescaled


def video(
    device: torch.device, targets: int, positions: int, kept: int, slots: int, classes: int
) -> tuple[Tensor, ...]:
    """Arguments of propagate_sequence: random neighbors in frame 0 and the `slots - 1` frames before each target."""
    generator = torch.Generator(device).manual_seed(0)
    weights = torch.rand(targets, positions, slots * kept, generator=generator, device=device)
    weights /= weights.sum(dim=2, keepdim=True)
    place = torch.randint(positions, weights.shape, generator=generator, device=device)
    indices = place + positions * torch.arange(slots, device=device).repeat_interleave(kept)
    number = torch.arange(targets, device=device)
    frames = (number[:, None] - torch.arange(slots - 1, device=device)).clamp(min=0)
    frames = torch.cat((torch.zeros_like(frames[:, :1]), frames), dim=1)
    labels = torch.rand(targets + 1, positions, classes, generator=generator, device=device)
    return weights, indices, labels, frames, number + 1


def frame_by_frame(weights: Tensor, indices: Tensor, labels: Tensor, frames: Tensor, targets: Tensor) -> Tensor:
    """The rival: a loop over frames with one propagate_labels and one rescaling each."""
    labels = labels.clone()
    for b, target in enumerate(targets.tolist()):
        out = propagate_labels(weights[b : b + 1], indices[b : b + 1], labels, frames[b : b + 1])[0]
        labels[target] = rescaled(out, 0)
    return labels


def run_sequence(
    device: torch.device, targets: int = 99, positions: int = 3600, kept: int = 5, slots: int = 8, classes: int = 10
) -> dict[str, Any]:
    """Check against float64, then time; microseconds per video."""
    arguments = video(device, targets, positions, kept, slots, classes)

    def ours() -> Tensor:
        return propagate_sequence(*arguments, rescale=True)

    wide = [x.double() if x.is_floating_point() else x for x in arguments]
    torch.testing.assert_close(ours().double(), propagate_sequence(*wide, rescale=True), atol=1e-4, rtol=0)
    calls: dict[str, Callable[[], object]] = {"ours": ours, "frame by frame": lambda: frame_by_frame(*arguments)}
    timed = {name: measure([call], device) for name, call in calls.items()}
    return {
        "name": f"labels through {targets + 1} frames of {positions} positions, {classes} classes",
        **timed["ours"],
        "peak_mb": peak_mb(ours, device),
        "frame by frame": timed["frame by frame"],
    }
