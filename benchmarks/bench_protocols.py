"""Label propagation through a video from given features, under a protocol, against the published implementations.

480 x 854 pixels, stride 8, 3 classes, float32; from the first mask to the last one, with upsampling.
"""

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.bench_topk_affinity import smooth_maps
from benchmarks.compare import compare
from timecycle.ops.selection import inside
from timecycle.propagation.labels import index_mask, soft_labels
from timecycle.propagation.protocols import PRESETS
from timecycle.propagation.video import propagate

SIZE = (480, 854)


def video(frames: int, channels: int, height: int, width: int) -> tuple[Tensor, np.ndarray]:
    """Features [F, D, h, w] that vary smoothly in space and time, and a first mask of two discs."""
    y, x = np.mgrid[: SIZE[0], : SIZE[1]]
    mask = np.zeros(SIZE, np.uint8)
    mask[(y - 200) ** 2 + (x - 250) ** 2 < 90**2] = 1
    mask[(y - 260) ** 2 + (x - 600) ** 2 < 120**2] = 2
    return smooth_maps(frames, frames // 4 + 2, channels, height, width), mask


@pytest.mark.parametrize(
    ("name", "frames", "channels", "height", "width"),
    [("crw", 4, 256, 60, 107), ("dino", 6, 384, 60, 104)],
    ids=["crw", "dino"],
)
def bench_video(benchmark, name, frames, channels, height, width):
    """CRW pads its context, so all frames cost the same; DINO's context grows up to eight frames."""
    features, mask = video(frames, channels, height, width)
    rules, working = PRESETS[name], (height * 8, width * 8)
    labels = soft_labels(mask, rules, (height, width), working)
    allowed = inside(width, rules.neighborhood(height, width).half_widths(), height * width, features.device)
    rows = features.flatten(2).transpose(1, 2).contiguous()
    soft = torch.from_numpy(labels.soft).flatten(1).T.contiguous()

    def theirs() -> list[np.ndarray]:
        maps = rivals.propagate(name, rows, soft, allowed, rules.length, rules.k, rules.temperature)
        grids = (found.T.reshape(-1, height, width) for found in maps)
        return [index_mask(grid, labels.ids, rules, working, SIZE) for grid in grids]

    def ours() -> np.ndarray:
        return propagate(features, mask, name, working_size=working).masks

    equal = np.mean(ours()[1:] == np.stack(theirs()))
    assert equal > 0.9995, f"{equal:.2%} of the pixels agree with the published implementation"
    compare(benchmark, ours, {f"{name.upper()}'s functions": theirs}, rounds=1, warm=False)
