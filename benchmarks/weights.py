"""Scores of the shipped network and of untrained features on real video.

    python -m benchmarks.weights --davis DAVIS              # all, some half an hour on two cores
    python -m benchmarks.weights --davis DAVIS --only network

Results are stored in benchmarks/results/weights.json with the hash of their weights; `python -m docs.generated --write`
writes the table in timecycle/models/weights/README.md from that file alone.
"""

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.report import ROOT
from docs import markdown
from timecycle import evaluate_davis
from timecycle.checkpoints.networks import save_encoder
from timecycle.evaluation.davis.layout import read_davis
from timecycle.features.named import SHIPPED, Features, hash_of_weights
from timecycle.features.parts import current_features
from timecycle.models.encoder import Trunk
from timecycle.models.walk import CropWalk, initialize
from timecycle.propagation.protocols import Protocol, protocol
from timecycle.provenance import commit

RESULTS = ROOT / "benchmarks" / "results" / "weights.json"
FIRST = 30  # frames; 0 means all
PROTOCOLS = {
    "`timecycle`, 320": protocol("timecycle"),
    "`crw`, half resolution": protocol("crw", resize="short side", side=240, length=7),
}
WORK = {
    "colour": (FIRST, 0),
    "colour+gradients": (FIRST, 0),
    "untrained": (FIRST,),
    "network": (FIRST, 0),
    "network+colour": (FIRST,),
    "network+colour+gradients": (FIRST, 0),
}
"""Features, and the numbers of frames of each sequence that they are tested on."""


def shortened(davis: Path, frames: int, folder: Path) -> Path:
    """A folder in DAVIS layout with links to the first frames of each sequence; `davis` itself for 0 frames."""
    if not frames:
        return davis
    listing = folder / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True)
    sequences = read_davis(davis)
    listing.write_text("".join(f"{sequence.name}\n" for sequence in sequences))
    for sequence in sequences:
        for kind, paths in (("JPEGImages", sequence.frames), ("Annotations", sequence.annotations)):
            (folder / kind / "480p" / sequence.name).mkdir(parents=True)
            for path in paths[:frames]:
                (folder / kind / "480p" / sequence.name / path.name).symlink_to(path.resolve())
    return folder


def features_of(name: str, rules: Protocol, folder: Path) -> Features:
    """Features by name; "untrained" is the network as initialized with seed 0."""
    given = (torch.device("cpu"), torch.float32, rules.mean, rules.std)
    if name != "untrained":
        return Features(tuple(name.split("+")), *given)
    torch.manual_seed(0)
    untrained = CropWalk(Trunk(18, 3, "reflect", 32)).encoder
    initialize(untrained)
    assert isinstance(untrained, Trunk)
    save_encoder(untrained, folder / "untrained.safetensors", {})
    return Features(("network",), *given, folder / "untrained.safetensors")


def measured(davis: Path, name: str, frames: int, rules: Protocol) -> dict[str, Any]:
    """J&F over all objects, and of each sequence."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        scores = evaluate_davis(
            features_of(name, rules, folder), shortened(davis, frames, folder / "davis"), rules, progress=False
        ).to_json()
    sequences = {
        sequence: float(np.mean([(one["J_mean"] + one["F_mean"]) / 2 for one in objects.values()]))
        for sequence, objects in scores["sequences"].items()
    }
    return {"J&F": scores["global"]["J&F-Mean"], "sequences": sequences}


def table(results: list[dict[str, Any]]) -> str:
    """The results as Markdown, in the order of `WORK`, and the default's gain over the best untrained features."""
    found = {(r["features"], r["protocol"], r["frames"]): r for r in results}
    spans = {FIRST: f"first {FIRST} frames", 0: "whole sequences"}
    columns = [(name, frames) for frames in spans for name in PROTOCOLS]
    head = ["features", *(f"{name}, {spans[frames]}" for name, frames in columns)]
    rows = []
    for features in WORK:
        cells = [found.get((features, *column)) for column in columns]
        rows.append([current_features(features), *(f"{100 * cell['J&F']:.1f}" if cell else "" for cell in cells)])
    gains = []
    for column in columns:
        joined, *others = (
            found.get((features, *column)) for features in ("network+colour+gradients", "colour", "colour+gradients")
        )
        known = [other for other in others if other]
        if joined is None or not known:
            gains.append("")
            continue
        best = max(known, key=lambda other: other["J&F"])
        each = [100 * (joined["sequences"][s] - best["sequences"][s]) for s in joined["sequences"]]
        error = np.std(each, ddof=1) / len(each) ** 0.5
        gains.append(f"{np.mean(each):+.1f} ± {error:.1f}")
    rows.append(["all three minus the better of those without training, paired over sequences", *gains])
    commits = ", ".join(sorted({r["commit"] for r in results}))
    return (
        f"{markdown.table(head, rows)}\n\nJ&F in per cent on {results[0]['sequence_count']} sequences of DAVIS-2016 "
        f"(one object each, in DAVIS-2017 layout), CPU, float32, commits {commits}, from "
        f"`{RESULTS.relative_to(ROOT)}`; the last row has means over sequences with their standard errors."
    )


def block() -> str:
    """The model card's table."""
    return table(json.loads(RESULTS.read_text()))


def main() -> None:
    """Measure and store."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.weights", description=__doc__.splitlines()[0])
    parser.add_argument("--davis", type=Path, required=True, help="folder in DAVIS-2017 layout")
    parser.add_argument("--only", nargs="+", choices=WORK, default=list(WORK), help="only these features")
    arguments = parser.parse_args()
    weights = hash_of_weights(SHIPPED)
    results = json.loads(RESULTS.read_text()) if RESULTS.exists() else []
    # Results of other weights are dropped.
    results = [r for r in results if "network" not in r["features"] or r["weights"] == weights]
    for features in arguments.only:
        for frames in WORK[features]:
            for name, rules in PROTOCOLS.items():
                work = {"features": features, "protocol": name, "frames": frames}
                found = measured(arguments.davis, features, frames, rules)
                print(features, name, frames or "all", f"{100 * found['J&F']:.1f}", flush=True)
                results = [r for r in results if any(r[key] != work[key] for key in work)]
                about = {"commit": commit(7) or "unknown", "sequence_count": len(found["sequences"])}
                results.append(work | about | ({"weights": weights} if "network" in features else {}) | found)
                RESULTS.write_text(json.dumps(results, indent=1) + "\n")


if __name__ == "__main__":
    main()
