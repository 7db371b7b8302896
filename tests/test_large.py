"""Large frames: propagation at 1080p takes a fraction of the memory of one affinity matrix."""

import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = """
import resource
import numpy as np, torch
from timecycle.propagation.protocols import PRESETS
from timecycle.propagation.frames import EncodedFrame, Sizes
from timecycle.propagation.video import labels_of_masks, propagate_features

def frames():
    generator = torch.Generator().manual_seed(0)
    for _ in range(3):
        features = torch.randn(128, 135, 240, generator=generator)
        yield EncodedFrame(features, Sizes((1080, 1920), (1080, 1920), (135, 240)))

mask = np.zeros((1080, 1920), np.uint8)
mask[300:600, 400:900] = 1
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
rules = PRESETS["PROTOCOL"]
masks = [frame.mask() for frame in propagate_features(frames(), rules, labels_of_masks({0: mask}, rules))]
assert all(found.shape == (1080, 1920) for found in masks)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="ru_maxrss counts KB on Linux")
@pytest.mark.parametrize("protocol", ["dino", "vfs"])
def test_full_hd_takes_a_fraction_of_one_matrix(protocol):
    run = subprocess.run(
        [sys.executable, "-c", PROGRAM.replace("PROTOCOL", protocol)],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=True,
    )
    # A frame's features take 17 MB, one affinity matrix 4.2 GB; the context is 8 or 21 frames.
    assert int(run.stdout) < 1e9
