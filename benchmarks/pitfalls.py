"""What common mistakes in label propagation cost: J and F on real video, each mistake beside the same run without it.

    python -m benchmarks.pitfalls --davis DAVIS      # measure what is not yet measured; shown in docs/protocols.md

The setting is small, so that all rows take minutes: protocol `crw` at a short side of 240 pixels with the features of
the shipped network alone, over the
first 30 frames of each sequence. Each row is stored in benchmarks/results/pitfalls.json when complete.
"""

import argparse
import copy
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional

from benchmarks.report import ROOT
from docs import markdown
from timecycle.checkpoints.networks import load_features
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.data.sequences import Sequence
from timecycle.evaluation.davis.layout import read_davis
from timecycle.evaluation.davis.scores import score_sequence
from timecycle.features.named import SHIPPED
from timecycle.models.encoder import Trunk
from timecycle.normalization import HALF, IMAGENET
from timecycle.propagation.frames import EncodedFrame, Sizes, image_size, preprocess
from timecycle.propagation.labels import Size, SoftLabels, nearest
from timecycle.propagation.protocols import Protocol, protocol
from timecycle.propagation.video import LabelsAt, PropagatedFrame, labels_of_masks, propagate_features
from timecycle.provenance import commit

RESULTS = ROOT / "benchmarks" / "results" / "pitfalls.json"
SHORT_SIDE = 240
FRAMES = 30
STRIDE = 8
OBJECT = 2
"""The object's id where ids are resized: between it and the background there is an id to invent."""
Encode = Callable[[Trunk, np.ndarray], tuple[Tensor, Size]]
"""Network and frame, uint8 [H, W, 3] -> features [D, h, w], and the size of the image that they are of."""


@dataclass(frozen=True)
class Run:
    """One way to propagate."""

    images: str = "usual"
    """A name of `ENCODINGS`."""
    rules: dict[str, Any] = field(default_factory=dict)
    """Fields of the protocol that differ."""
    labels: Callable[[np.ndarray, Protocol], LabelsAt] = lambda mask, rules: labels_of_masks({0: mask}, rules)
    """The first mask's labels."""
    mask: Callable[[PropagatedFrame], np.ndarray] = PropagatedFrame.mask
    object_id: int = 1
    """The object's id in the first mask."""


def usual(network: Trunk, rgb: np.ndarray) -> tuple[Tensor, Size]:
    """As the protocol prepares a frame."""
    return encoded(network, preprocess(rgb, BASE))


def encoded(network: Trunk, image: Tensor) -> tuple[Tensor, Size]:
    """The features of a normalized image [3, H, W], and its size."""
    return network(image[None])[0], (image.shape[1], image.shape[2])


def normalized_by(mean: tuple[float, ...], std: tuple[float, ...]) -> Encode:
    """Images normalized by other statistics than the network was trained with."""
    rules = protocol(BASE, mean=mean, std=std)
    return lambda network, rgb: encoded(network, preprocess(rgb, rules))


def whole(network: Trunk, rgb: np.ndarray) -> tuple[Tensor, Size]:
    """One pixel more than `cut` in each side, so that nothing is dropped."""
    return encoded(network, preprocess(rgb, protocol(BASE, side=SHORT_SIDE + STRIDE)))


def cut(network: Trunk, rgb: np.ndarray) -> tuple[Tensor, Size]:
    """The last pixels of each side dropped, as a patch embedding of stride 8 drops them; 7 is the most it can drop."""
    image = resized(rgb, SHORT_SIDE + STRIDE - 1)
    rows, columns = (side // STRIDE * STRIDE for side in image.shape[:2])
    features, _ = encoded(network, preprocess(image[:rows, :columns], NATIVE))
    return features, (image.shape[0], image.shape[1])


def resized(rgb: np.ndarray, short: int) -> np.ndarray:
    """A frame whose sides are both a multiple of the stride, and one pixel less."""
    height, width = image_size(*rgb.shape[:2], protocol(BASE, side=short + 1))
    return cv2.resize(rgb, (width - 1, height - 1), interpolation=cv2.INTER_LINEAR)


def antialiased(network: Trunk, rgb: np.ndarray) -> tuple[Tensor, Size]:
    """Frames shrunk with an antialiasing filter, as Pillow and torchvision do by default."""
    size = image_size(*rgb.shape[:2], BASE)
    small = np.array(Image.fromarray(rgb).resize(size[::-1], Image.Resampling.BILINEAR))
    return encoded(network, preprocess(small, NATIVE))


def training_mode(network: Trunk, rgb: np.ndarray) -> tuple[Tensor, Size]:
    """A network that was not switched to evaluation mode: batch normalization by each frame's own statistics."""
    return encoded(copy.deepcopy(network).train(), preprocess(rgb, BASE))


BASE = protocol(
    "crw", resize="short side", side=SHORT_SIDE, multiple=STRIDE, rounding="nearest", first_mask="given"
)  # fmt: skip
"""Both sides are multiples of the stride."""
NATIVE = protocol(BASE, resize="native")
ENCODINGS: dict[str, Encode] = {
    "usual": usual,
    "cut": cut,
    "whole": whole,
    "std of DINO": normalized_by(IMAGENET[0], (0.228, 0.224, 0.225)),
    "half": normalized_by(*HALF),
    "BGR": lambda network, rgb: encoded(network, preprocess(np.ascontiguousarray(rgb[:, :, ::-1]), BASE)),
    "antialiased": antialiased,
    "training mode": training_mode,
    "bfloat16": lambda network, rgb: (usual(network, rgb)[0].bfloat16().float(), image_size(*rgb.shape[:2], BASE)),
}


def one_hot_of(small: np.ndarray) -> SoftLabels:
    """Labels of a mask on the feature grid, of every id up to the largest."""
    ids = tuple(range(int(small.max()) + 1))
    return SoftLabels(np.stack([(small == i).astype(np.float32) for i in ids]), ids)


def by_opencv(flag: int) -> Callable[[np.ndarray, Protocol], LabelsAt]:
    """The first mask's ids resized to the grid by OpenCV."""

    def labels(mask: np.ndarray, rules: Protocol) -> LabelsAt:
        def at(index: int, sizes: Sizes) -> SoftLabels | None:
            return None if index else one_hot_of(cv2.resize(mask, sizes.grid[::-1], interpolation=flag))

        return at

    return labels


def by_nearest(mask: np.ndarray, rules: Protocol) -> LabelsAt:
    """The first mask's ids resized to the grid by nearest, sampled at the centers."""
    return lambda index, sizes: None if index else one_hot_of(nearest(mask, sizes.grid))


def interpolated_ids(frame: PropagatedFrame) -> np.ndarray:
    """The mask at the working size, enlarged by interpolating ids."""
    return cv2.resize(frame.mask(frame.sizes.working), frame.sizes.frame[::-1], interpolation=cv2.INTER_LINEAR)


def enlarged_ids(frame: PropagatedFrame) -> np.ndarray:
    """The mask at the working size, enlarged by nearest."""
    return nearest(frame.mask(frame.sizes.working), frame.sizes.frame)


def aligned_corners(frame: PropagatedFrame) -> np.ndarray:
    """Soft labels upsampled with align_corners=True."""
    large = functional.interpolate(frame.soft[None], frame.sizes.frame, mode="bilinear", align_corners=True)[0]
    return np.array(frame.ids, np.uint8)[large.argmax(dim=0).numpy()]


IDS = Run(labels=by_nearest, mask=enlarged_ids, object_id=OBJECT)
RIGHT = Run()
ROWS: dict[str, tuple[Run, Run]] = {
    "image sides of 8n + 7 pixels: the rest is dropped, the mask is stretched": (Run("cut"), Run("whole")),
    "first mask's ids interpolated (bilinear) instead of nearest": (
        Run(labels=by_opencv(cv2.INTER_LINEAR), mask=enlarged_ids, object_id=OBJECT), IDS,
    ),
    "result's ids interpolated (bilinear) instead of nearest": (
        Run(labels=by_nearest, mask=interpolated_ids, object_id=OBJECT), IDS,
    ),
    "first mask by OpenCV's INTER_NEAREST, which samples corners": (
        Run(labels=by_opencv(cv2.INTER_NEAREST), mask=enlarged_ids, object_id=OBJECT), IDS,
    ),
    "std (0.228, 0.224, 0.225), as in DINO's code": (Run("std of DINO"), RIGHT),
    "mean and std 0.5 instead of ImageNet's": (Run("half"), RIGHT),
    "channels in the order BGR, as `cv2.imread` gives them": (Run("BGR"), RIGHT),
    "network left in training mode": (Run("training mode"), RIGHT),
    "frames shrunk with antialiasing (Pillow, torchvision) instead of OpenCV's bilinear": (Run("antialiased"), RIGHT),
    "features rounded to bfloat16": (Run("bfloat16"), RIGHT),
    "features not scaled to length 1": (Run(rules={"l2": False}), RIGHT),
    "min-max scaling of each class before the arg-max, which `crw` has not": (Run(rules={"scale": "positive"}), RIGHT),
    "soft labels enlarged by PyTorch's bilinear instead of OpenCV's": (Run(rules={"upsample": "bilinear"}), RIGHT),
    "soft labels enlarged with `align_corners=True`": (Run(mask=aligned_corners), RIGHT),
    "no copies of frame 0 in place of missing frames": (Run(rules={"first": "once"}), RIGHT),
    "frame 0 compared within the neighborhood only": (Run(rules={"first_everywhere": False}), RIGHT),
    "no neighborhood": (Run(rules={"radius": None}), RIGHT),
    "k neighbors of each frame instead of k of all frames": (Run(rules={"scope": "frame"}), RIGHT),
}  # fmt: skip
"""Mistakes: the run with it and the run without, by what they are called."""


def encode(network: Trunk, sequence: Sequence, how: str) -> list[tuple[Tensor, Sizes]]:
    """The features of a sequence's frames, and their sizes."""
    found = []
    for path in sequence.frames[:FRAMES]:
        rgb = read_rgb(path)
        features, working = ENCODINGS[how](network, rgb)
        grid = features.shape[1], features.shape[2]
        found.append((features, Sizes((rgb.shape[0], rgb.shape[1]), working, grid)))
    return found


def measure(sequence: Sequence, run: Run, features: list[tuple[Tensor, Sizes]]) -> list[float]:
    """Mean J and F of a sequence's only object, of all frames but the first and the last, as on DAVIS."""
    rules = protocol(BASE, **run.rules)
    first = read_mask(sequence.annotations[0]) * np.uint8(run.object_id)
    frames = (EncodedFrame(*one) for one in features)
    propagated = propagate_features(frames, rules, run.labels(first, rules), length=len(features))
    found = [(run.mask(frame) == run.object_id).astype(np.uint8) for frame in propagated]
    (scores,) = score_sequence([read_mask(path) for path in sequence.annotations[: len(found)]], found)
    return [round(float(mean), 5) for mean in (scores.jaccard_statistics.mean, scores.boundary_statistics.mean)]


def runs() -> Iterator[tuple[str, str, Run]]:
    """Row, "with" or "without", and run, such that runs on the same features follow each other."""
    every = [
        (row, side, run) for row, pair in ROWS.items() for side, run in zip(("with", "without"), pair, strict=True)
    ]
    for how in ENCODINGS:
        yield from (one for one in every if one[2].images == how)


@torch.inference_mode()
def measure_rows(sequences: list[Sequence], found: dict[str, Any]) -> None:
    """Measure the rows that are not in `found` yet, storing each run as soon as it is complete."""
    found |= {"commit": commit(7) or "unknown", "sequences": [s.name for s in sequences]}
    found |= {"short side": SHORT_SIDE, "frames": FRAMES}
    network = load_features(SHIPPED)
    assert isinstance(network, Trunk)
    known: dict[int, dict[str, list[float]]] = {}  # by run: many rows have the same one without the mistake
    features: dict[str, list[tuple[Tensor, Sizes]]] = {}
    held = ""
    for row, side, run in runs():
        rows = found.setdefault("rows", {}).setdefault(row, {})
        if side in rows:
            known.setdefault(id(run), rows[side])
            continue
        if id(run) not in known:
            if held != run.images:
                features, held = {s.name: encode(network, s, run.images) for s in sequences}, run.images
            known[id(run)] = {s.name: measure(s, run, features[s.name]) for s in sequences}
        rows[side] = known[id(run)]
        RESULTS.write_text(json.dumps(found) + "\n")
        print(f"{side} {row}: {100 * np.mean(list(rows[side].values())):.1f}", flush=True)


def table(found: dict[str, Any]) -> str:
    """The results as Markdown, the largest loss first: J&F with and without each mistake that was measured."""
    rows = []
    for name in ROWS:
        both = found["rows"].get(name, {})
        if set(both) != {"with", "without"}:
            continue
        with_it, without = (100 * np.mean(list(both[side].values()), axis=1) for side in ("with", "without"))
        gain = with_it - without
        counts = f"{(gain < -0.1).sum()}, {(gain > 0.1).sum()}"
        change = f"{gain.mean():+.1f}".replace("-0.0", "0.0").replace("+0.0", "0.0")
        rows.append((gain.mean(), [name, f"{without.mean():.1f}", f"{with_it.mean():.1f}", change, counts]))
    head = ["mistake, or another protocol's rule", "J&F without it", "with it", "difference", "sequences worse, better"]
    return (
        f"{markdown.table(head, [row for _, row in sorted(rows)])}\n\nMean J&F in per cent of the first "
        f"{found['frames']} frames of {len(found['sequences'])} sequences of DAVIS-2016, one object each; protocol "
        f"`crw` at short side {found['short side']}, features of the shipped network alone; commit {found['commit']}, "
        f"from `{RESULTS.relative_to(ROOT)}`. A sequence counts as worse or better from 0.1 points on."
    )


def block() -> str:
    """The table of the results file, for docs/generated.py."""
    return table(json.loads(RESULTS.read_text()))


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path, required=True, help="folder in DAVIS-2017 layout, one object each")
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    measure_rows(read_davis(parser.parse_args().davis), json.loads(RESULTS.read_text()) if RESULTS.exists() else {})


if __name__ == "__main__":
    main()
