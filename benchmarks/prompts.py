"""How well boxes and points of the true masks give masks: IoU on the first frames of a folder in DAVIS layout.

    python -m benchmarks.prompts --davis DAVIS           # writes benchmarks/results/prompts.json
    python -m benchmarks.prompts --davis DAVIS --fit     # prints the weights in timecycle/tracking/prompts.py

A box bounds the union of all objects. `held_out` is measured with weights fitted without the sequence. Points are
sampled inside the true mask, and two of the background within the surrounding box, by a fixed seed.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from timecycle.data.images import read_rgb
from timecycle.data.masks import VOID, read_mask
from timecycle.features.named import Features
from timecycle.features.parts import PARTS
from timecycle.files import write_json
from timecycle.propagation.frames import preprocess
from timecycle.propagation.protocols import protocol
from timecycle.provenance import commit
from timecycle.tracking import prompts
from timecycle.tracking.cues import Cells, box_cues

RESULTS = Path(__file__).parent / "results" / "prompts.json"
POINTS = (1, 3, 5)
NEGATIVE = 2
SETS = {
    "WITH_MOTION": ("near", "near rank", "wide", "wide rank", "color", "local color", "local color rank", "motion",
                    "motion rank"),
    "WITH_AFFINITY": ("near", "near rank", "wide", "wide rank", "color", "local color", "local color rank", "affinity",
                      "affinity rank"),
    "WITH_COLOR": ("near", "near rank", "wide", "wide rank", "color", "local color", "local color rank"),
}  # fmt: skip
RULES = protocol("crw", resize="short side", side=480)
Frame = dict[str, Any]


def frames_of(davis: Path, where: tuple[float, ...]) -> list[Frame]:
    """Frames of all sequences at these shares of their length, with their features and a neighboring frame."""
    extractor = Features(PARTS, torch.device("cpu"), torch.float32, RULES.mean, RULES.std)
    found = []
    for folder in sorted((davis / "Annotations" / "480p").iterdir()):
        annotations = sorted(folder.glob("*.png"))
        images = [davis / "JPEGImages" / "480p" / folder.name / f"{path.stem}.jpg" for path in annotations]
        for share in where:
            at = round(share * (len(images) - 1))
            mask, rgb = read_mask(annotations[at]), read_rgb(images[at])
            mask = (mask > 0) & (mask != VOID)
            image = preprocess(rgb, RULES)
            extractor.begin(image)
            with torch.no_grad():
                features = extractor(image[None])[0]
            other = read_rgb(images[at + 1 if at + 1 < len(images) else at - 1])
            box = cv2.boundingRect(mask.astype(np.uint8))
            found.append(
                {
                    "name": folder.name,
                    "share": share,
                    "rgb": rgb,
                    "mask": mask,
                    "box": box,
                    "features": features,
                    "other": other,
                }
            )
    return found


def iou(found: np.ndarray, mask: np.ndarray) -> float:
    return float(np.count_nonzero(found & mask) / np.count_nonzero(found | mask))


def with_cues(frame: Frame) -> Frame:
    """The cues of a frame's box, and the object's share of each cell."""
    x, y, width, height = frame["box"]
    box = (x, y, x + width, y + height)
    cells = Cells.of(frame["rgb"], prompts.window_of(box, frame["mask"].shape))
    cues = box_cues(frame["rgb"], box, cells, frame["features"], frame["other"])
    inside = cells.inside(box)
    return {
        "name": frame["name"],
        "cues": {name: cue[inside] for name, cue in cues.items()},
        "object": cells.sampled(frame["mask"])[inside],
    }


def fitted(frames: list[Frame], names: tuple[str, ...]) -> dict[str, float]:
    """Weights of cues, and the constant under "": logistic regression by Newton's method, each frame counting alike."""
    cues = np.concatenate([np.stack([frame["cues"][name] for name in names], axis=1) for frame in frames])
    wanted = np.concatenate([frame["object"] for frame in frames])
    counts = np.concatenate([np.full(len(frame["object"]), 1 / len(frame["object"])) for frame in frames])
    mean, spread = cues.mean(axis=0), cues.std(axis=0) + 1e-6
    rows = np.concatenate([(cues - mean) / spread, np.ones((len(cues), 1))], axis=1).astype(np.float64)
    weights, ridge = np.zeros(rows.shape[1]), 0.01 * np.eye(rows.shape[1])
    ridge[-1, -1] = 0
    for _ in range(15):
        share = 1 / (1 + np.exp(-rows @ weights))
        slope = rows.T @ (counts * (share - wanted)) + ridge @ weights
        weights -= np.linalg.solve((rows * (counts * share * (1 - share))[:, None]).T @ rows + ridge, slope)
    scaled = weights[:-1] / spread
    found = dict(zip(names, scaled.tolist(), strict=True)) | {"": float(weights[-1] - scaled @ mean)}
    return {name: round(value, 3) for name, value in found.items()}


def of_boxes(frames: list[Frame], kind: str) -> dict[str, Any]:
    features, other = kind == "WITH_AFFINITY", kind == "WITH_MOTION"
    scores, seconds = {}, []
    for frame in frames:
        begin = time.perf_counter()
        found = prompts.mask_from_box(
            frame["rgb"], frame["box"], frame["features"] if features else None, frame["other"] if other else None
        )
        seconds.append(time.perf_counter() - begin)
        scores[frame["name"]] = round(iou(found, frame["mask"]), 3)
    return {"mean": mean_of(scores), "iou": scores, "seconds": round(float(np.median(seconds)), 2)}


def mean_of(scores: dict[str, float]) -> float:
    return round(float(np.mean(list(scores.values()))), 3)


def held_out(frames: list[Frame], fit: list[Frame], kind: str) -> dict[str, Any]:
    """As `of_boxes`, each sequence with weights fitted on the others."""
    shipped, scores = getattr(prompts, kind), {}
    for frame in frames:
        setattr(prompts, kind, fitted([other for other in fit if other["name"] != frame["name"]], SETS[kind]))
        scores |= of_boxes([frame], kind)["iou"]
    setattr(prompts, kind, shipped)
    return {"mean": mean_of(scores), "iou": scores}


def of_points(frames: list[Frame], count: int) -> dict[str, Any]:
    scores = {}
    for number, frame in enumerate(frames):
        random = np.random.default_rng(number)
        x, y, width, height = frame["box"]
        inner = cv2.erode(frame["mask"].astype(np.uint8), np.ones((5, 5), np.uint8)) > 0
        around = np.zeros_like(inner)
        around[y : y + height, x : x + width] = True
        positive = random.permutation(np.argwhere(inner))[:count, ::-1]
        negative = random.permutation(np.argwhere(around & ~frame["mask"]))[:NEGATIVE, ::-1]
        found = prompts.mask_from_points(frame["rgb"], positive.tolist(), negative.tolist(), frame["features"])
        scores[frame["name"]] = round(iou(found, frame["mask"]), 3)
    return {"mean": mean_of(scores), "iou": scores}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path, required=True)
    parser.add_argument("--fit", action="store_true", help="print weights instead")
    options = parser.parse_args()
    frames = frames_of(options.davis, (0.0, 0.5, 1.0))
    fit = [with_cues(frame) for frame in frames]
    if options.fit:
        for kind, names in SETS.items():
            print(kind, fitted(fit, names))
        return
    firsts = [frame for frame in frames if frame["share"] == 0]
    results = {
        "commit": commit(),
        "box, with the next frame": of_boxes(firsts, "WITH_MOTION")
        | {"held_out": held_out(firsts, fit, "WITH_MOTION")},
        "box, with features": of_boxes(firsts, "WITH_AFFINITY") | {"held_out": held_out(firsts, fit, "WITH_AFFINITY")},
        "box alone": of_boxes(firsts, "WITH_COLOR") | {"held_out": held_out(firsts, fit, "WITH_COLOR")},
        **{f"{count} points and {NEGATIVE} of the background": of_points(firsts, count) for count in POINTS},
    }
    write_json(RESULTS, results)
    for name, result in results.items():
        if isinstance(result, dict):
            print(f"{name:36s} {result['mean']:.3f}  held out {result.get('held_out', {}).get('mean', '')}")


if __name__ == "__main__":
    main()
