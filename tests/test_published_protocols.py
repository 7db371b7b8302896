"""The operators under every published protocol, against the recorded selections and labels of the original programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.conftest import NATIVE_NEEDED
from tests.test_protocols import RECORDED
from timecycle.ops import Neighborhood, Select, propagate_labels, topk_affinity

SHAPES = {"crw": "circle<", "vfs": "circle<", "dinov3": "circle<=", "dino": "square<=", "dift": "square<="}


def context(protocol: str, t: int, length: int, neighborhood: Neighborhood | None) -> tuple[list[int], Tensor]:
    """Context frames of target t, each once, and how often each counts inside and outside the neighborhood."""
    if protocol == "crw":
        # Slot 0 is frame 0 without a neighborhood; the others are the last `length` frames, padded with frame 0.
        slots = [max(0, i) for i in range(t - length, t)]
        frames = sorted({0, *slots})
        return frames, torch.tensor([[slots.count(f) + (f == 0), int(f == 0)] for f in frames])
    first = 0 if protocol == "vfs" else 1
    frames = [0, *range(max(first, t - length), t)]
    return frames, torch.tensor([[1, 1 if neighborhood is None else 0]] * len(frames))


def merged(weights: Tensor, indices: Tensor, frames: list[int], positions: int) -> list[dict[int, float]]:
    """For each query, the weight of each position of the video, summed over repeated entries."""
    out = []
    for row_weights, row in zip(weights.tolist(), indices.tolist(), strict=True):
        kept: dict[int, float] = {}
        for weight, index in zip(row_weights, row, strict=True):
            if index >= 0:
                key = frames[index // positions] * positions + index % positions
                kept[key] = kept.get(key, 0.0) + weight
        out.append(kept)
    return out


# The compiled kernel with its own choice of products, and either the reference or products of bytes.
CASES = [pytest.param(name, "cpu", marks=NATIVE_NEEDED) for name in RECORDED]
CASES += [(name, "reference") for name in RECORDED[::2]]
CASES += [pytest.param(name, "cpu, bytes", marks=NATIVE_NEEDED) for name in RECORDED[1::2]]


@pytest.mark.parametrize(("name", "backend"), CASES)
def test_selection_and_labels_equal_the_originals(shared: Path, name, backend):
    folder = shared / "oracle" / "propagation"
    recorded = np.load(folder / f"{name}.npz")
    rules = json.loads(str(recorded["params"]))
    protocol = rules["protocol"]
    features = torch.from_numpy(np.load(folder / rules["input"])["features"].astype(np.float32))
    frames_count, _, height, width = features.shape
    bank = features.flatten(2).transpose(1, 2).contiguous()
    if rules["l2_normalise"]:
        bank = torch.nn.functional.normalize(bank, dim=2)
    neighborhood = Neighborhood(height, width, rules["radius"], SHAPES[protocol]) if protocol in SHAPES else None
    each = protocol == "uvc"
    select = Select(
        rules["topk"],
        rules["temperature"],
        scope="frame" if each else "joint",
        softmax_over="all" if each else "topk",
        ties="exact" if protocol in ("crw", "vfs") else "all",
    )
    tolerance = 3e-5 if each else 1e-5
    labels = torch.from_numpy(recorded["soft"]).flatten(2).transpose(1, 2).clone()
    selected = [t for t in range(1, frames_count) if f"sel_index_t{t}" in recorded]
    assert selected
    for t in selected if backend == "reference" else range(1, frames_count):  # the reference is slow
        frames, multiplicity = context(protocol, t, rules["n_context"], neighborhood)
        slots = torch.tensor([frames])
        weights, indices = topk_affinity(
            bank[t : t + 1], bank, slots, select, neighborhood=neighborhood, multiplicity=multiplicity, backend=backend
        )
        # The computed labels are fed back, so that errors would accumulate.
        labels[t] = propagate_labels(weights, indices, labels, slots)[0]
        soft = labels[t].T.reshape(-1, height, width).numpy()
        np.testing.assert_allclose(soft, recorded["soft"][t], atol=tolerance, rtol=0)
        if t in selected:
            ours = merged(weights[0] * (len(frames) if each else 1), indices[0], frames, height * width)
            theirs = zip(recorded[f"sel_index_t{t}"].tolist(), recorded[f"sel_weight_t{t}"].tolist(), strict=True)
            pairs: list[tuple[float, float]] = []
            for kept, (expected_indices, expected_weights) in zip(ours, theirs, strict=True):
                expected = {i: w for i, w in zip(expected_indices, expected_weights, strict=True) if i >= 0}
                assert kept.keys() == expected.keys()
                pairs += [(kept[i], weight) for i, weight in expected.items()]
            np.testing.assert_allclose(*np.transpose(pairs), atol=tolerance, rtol=0)
