"""The search for protocol "best": J and F of whole DAVIS sequences with the shipped features, change by change.

    python -m benchmarks.best_protocol --davis DAVIS --work FOLDER [--processes 2]   # measure what is not yet measured
    python -m benchmarks.best_protocol --davis DAVIS --work FOLDER --confidence      # confidence beside J, by frame
    python -m benchmarks.best_protocol --davis DAVIS --time                          # time best beside crw at 480

`python -m docs.generated --write` then writes the tables of docs/best_protocol.md. Features and soft labels are kept in
FOLDER, so that what only changes the mask is not propagated again.
"""

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import asdict
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from benchmarks.report import ROOT
from docs import markdown
from timecycle.data.images import read_rgb
from timecycle.data.masks import read_mask
from timecycle.data.sequences import Sequence
from timecycle.evaluation.davis.layout import read_davis
from timecycle.evaluation.davis.metrics import score_frame
from timecycle.features.named import Features
from timecycle.features.parts import PARTS
from timecycle.normalization import IMAGENET
from timecycle.propagation.confidence import LOST_BELOW, confidence
from timecycle.propagation.frames import EncodedFrame, Sizes, encode_frames, image_size
from timecycle.propagation.protocols import PRESETS, Protocol, protocol
from timecycle.propagation.video import (
    PropagatedFrame,
    labels_of_masks,
    propagate_features,
    propagate_frames,
    rules_for,
)

RESULTS = ROOT / "benchmarks" / "results" / "best_protocol.json"

CRW = {"resize": "short side", "side": 480, "multiple": 8, "rounding": "nearest"}
REGION = {**CRW, "sharpen": 1.5, "first_everywhere": False}
LARGE = {**REGION, "side": 600, "radius": 15.0}
GUIDED = {"refine": 1.0}
WHOLE = {**LARGE, "length": 30, **GUIDED}
ROWS: dict[str, dict[str, Any]] = {
    "crw, short side 480": CRW,
    "the same, guided filter": CRW | GUIDED,
    "the same, labels sharpened": CRW | {"sharpen": 1.5},
    "both": CRW | {"sharpen": 1.5} | GUIDED,
    "both, frame 0 within the neighborhood only": REGION | GUIDED,
    "these, short side 600, radius 15": LARGE | GUIDED,
    "these, 30 context frames": WHOLE,
    "best: these, far islands removed": WHOLE | {"islands": 0.25},
    "best without the guided filter, islands kept": LARGE | {"length": 30},
    "best without sharpening": WHOLE | {"sharpen": 1.0, "islands": 0.25},
    "best, frame 0 everywhere": WHOLE | {"first_everywhere": True, "islands": 0.25},
    "crw, short side 480, far islands removed": CRW | {"islands": 0.25},
}
"""Changes to preset crw, by what they are called."""
SEQUENCES = 11
BASE, BEST = "crw, short side 480", "best: these, far islands removed"
OWN_SIZE = [name for name in PRESETS if name not in ("crw", "best")]
"""Published presets, each at its own size; crw's own is the frame's, the first row's here."""
MASK_FIELDS = ("refine", "refine_eps", "islands", "upsample", "upsample_to", "scale", "first_mask", "name")


def rules_of(row: str) -> Protocol:
    """A row's protocol, for features of length 1; the given first mask is frame 0's result."""
    changes = {"l2": False, "first_mask": "given", **ROWS.get(row, {})}
    return protocol("crw" if row in ROWS else row, **changes)


def encoded(sequence: Sequence, rules: Protocol, work: Path) -> Iterator[EncodedFrame]:
    """The features of a sequence, stored as float16 on first use."""
    usual = (rules.color, rules.mean, rules.std) == ("rgb", *IMAGENET)
    path = work / f"{sequence.name}-{rules.resize}-{rules.side}{'' if usual else '-' + rules.name}.npy"
    if not path.exists():
        features = Features(PARTS, torch.device("cpu"), torch.float32, rules.mean, rules.std)
        maps = [frame.features.numpy().astype(np.float16) for frame in encode_frames(sequence.frames, features, rules)]
        np.save(path, np.stack(maps))
    maps = np.load(path, mmap_mode="r")
    for place, stored in zip(sequence.frames, maps, strict=True):
        rgb = read_rgb(place)
        size = rgb.shape[0], rgb.shape[1]
        sizes = Sizes(size, image_size(*size, rules), (stored.shape[1], stored.shape[2]))
        yield EncodedFrame(torch.from_numpy(stored.astype(np.float32)), sizes, rgb)


def soft_file(sequence: Sequence, rules: Protocol, work: Path) -> Path:
    """Where the soft labels of a sequence are stored, by all fields that change them."""
    fields = {name: value for name, value in asdict(rules).items() if name not in MASK_FIELDS}
    plain = asdict(protocol("crw"))
    words = [f"{name}={value}" for name, value in fields.items() if value != plain[name]]
    return work / ("-".join([sequence.name, *words]).replace(" ", "_") + ".npy")


def propagated(sequence: Sequence, rules: Protocol, work: Path) -> Iterator[PropagatedFrame]:
    """The frames of a sequence with their labels, which are stored on first use."""
    path = soft_file(sequence, rules, work)
    first = {0: read_mask(sequence.annotations[0])}
    frames = encoded(sequence, rules, work)
    if path.exists():
        ids = (0, 1)
        for index, (frame, soft) in enumerate(zip(frames, np.load(path), strict=True)):
            given = labels_of_masks(first, rules)(index, frame.sizes)
            yield PropagatedFrame(index, torch.from_numpy(soft), ids, frame.sizes, rules, frame.rgb, given)
        return
    stored = []
    for frame in propagate_features(frames, rules, labels_of_masks(first, rules), length=len(sequence.frames)):
        stored.append(frame.soft.numpy())
        yield frame
    np.save(path, np.stack(stored))


@torch.inference_mode()
def measure(job: tuple[str, Sequence, Path]) -> tuple[str, str, list[float]]:
    """Mean J and F of one sequence, of one object."""
    name, sequence, work = job
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    scores = [
        score_frame(read_mask(sequence.annotations[frame.index]), frame.mask(), 1)[0]
        for frame in propagated(sequence, rules_of(name), work)
    ]
    return name, sequence.name, [round(float(value), 5) for value in np.mean(scores[1:-1], axis=0)]


def measure_rows(
    names: list[str], sequences: list[Sequence], work: Path, processes: int, found: dict[str, Any]
) -> None:
    """Measure the rows that are not in `found` yet, storing each as soon as it is complete."""
    work.mkdir(parents=True, exist_ok=True)
    rows = found.setdefault("rows", {})
    jobs = [(name, s, work) for name in names for s in sequences if s.name not in rows.get(name, {})]
    with get_context("spawn").Pool(processes) as pool:
        for name, sequence, scores in pool.imap(measure, jobs):
            rows.setdefault(name, {})[sequence] = scores
            save(found)
            print(f"{name}: {sequence} {scores}", flush=True)


@torch.inference_mode()
def measure_confidence(sequences: list[Sequence], work: Path) -> dict[str, Any]:
    """Spearman's correlation of the confidence with J over all scored frames of `best`, pooled."""
    pairs: dict[str, np.ndarray] = {}
    for sequence in sequences:
        values = [
            (confidence(frame)[0], score_frame(read_mask(sequence.annotations[frame.index]), frame.mask(), 1)[0, 0])
            for frame in propagated(sequence, rules_of(BEST), work)
        ]
        pairs[sequence.name] = np.array(values[1:-1])
    every = np.concatenate(list(pairs.values()))
    without = [spearman(np.concatenate([v for other, v in pairs.items() if other != name])) for name in pairs]
    low = every[:, 0] < LOST_BELOW
    return {
        "frames": len(every),
        "spearman": round(spearman(every), 4),
        "spearman without one sequence, least": round(min(without), 4),
        "frames below the threshold": int(low.sum()),
        "mean J below": round(float(every[low, 1].mean()), 4) if low.any() else None,
        "mean J above": round(float(every[~low, 1].mean()), 4),
        "threshold": LOST_BELOW,
        "by sequence": {name: np.round(values, 3).tolist() for name, values in pairs.items()},
    }


def spearman(pairs: np.ndarray) -> float:
    """Spearman's rank correlation of pairs [n, 2] without ties."""
    first, second = pairs.argsort(axis=0).argsort(axis=0).T
    return float(np.corrcoef(first, second)[0, 1])


@torch.inference_mode()
def measure_time(sequences: list[Sequence], frames: int = 45, warm: int = 32) -> dict[str, Any]:
    """Seconds per frame from image file to mask, of crw at 480 and of best in turn, frame by frame, one thread."""
    torch.set_num_threads(1)
    cv2.setNumThreads(1)
    rules = {"crw": rules_of(BASE), "best": protocol("best", first_mask="given")}
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in rules}
    for sequence in sequences:
        first = {0: read_mask(sequence.annotations[0])}
        streams = {}
        for name, rule in rules.items():
            features = Features(PARTS, torch.device("cpu"), torch.float32, rule.mean, rule.std)
            rule = rules_for(features, rule)
            streams[name] = propagate_frames(
                sequence.frames[:frames], features, rule, labels_of_masks(first, rule), read_ahead=0
            )
        for index in range(min(frames, len(sequence.frames))):
            for name, stream in streams.items():
                start = time.perf_counter(), time.process_time()
                next(stream).mask()
                if index >= warm:  # the context is full
                    seconds[name].append((time.perf_counter() - start[0], time.process_time() - start[1]))
    medians = {name: np.median(values, axis=0) for name, values in seconds.items()}
    return {
        "sequences": [sequence.name for sequence in sequences],
        "frames": len(seconds["crw"]),
        "wall": {name: round(float(value[0]), 4) for name, value in medians.items()},
        "cpu": {name: round(float(value[1]), 4) for name, value in medians.items()},
    }


def table(found: dict[str, Any]) -> str:
    """The Markdown table of the protocols."""
    rows = {name: np.array(list(scores.values())) for name, scores in found["rows"].items() if len(scores) == SEQUENCES}
    base = rows[BASE].mean(axis=1)
    lines = []
    for name in [name for name in [*ROWS, *OWN_SIZE] if name in rows]:
        j, f = 100 * rows[name].mean(axis=0)
        gain = 100 * (rows[name].mean(axis=1) - base)
        better = "" if name == BASE else f"{(gain > 0.1).sum()}, {(gain < -0.1).sum()}"
        label = f"preset `{name}`, its own size" if name in OWN_SIZE else name
        lines.append([label, f"{j:.1f}", f"{f:.1f}", f"{(j + f) / 2:.1f}", f"{gain.mean():+.1f}", better])
    return markdown.table(["protocol", "J", "F", "J&F", "beside crw", "sequences better, worse"], lines)


def by_sequence(found: dict[str, Any]) -> str:
    """The Markdown table of crw and best by sequence."""
    crw, best = (found["rows"].get(name, {}) for name in (BASE, BEST))
    return markdown.table(["sequence", "crw", "best"], [[name, of(crw[name]), of(best[name])] for name in best])


def time_spent(found: dict[str, Any]) -> str:
    """What a frame of best costs beside one of crw."""
    seconds = found["seconds"]
    cpu, wall = (seconds[kind] for kind in ("cpu", "wall"))
    return (
        f"Time per frame, from the image file to the mask, one thread, in turn with crw frame by frame on "
        f"{' and '.join(seconds['sequences'])} with full contexts ({seconds['frames']} frames, medians): "
        f"{cpu['best']:.2f} s of CPU time beside {cpu['crw']:.2f} s, {cpu['best'] / cpu['crw']:.2f} times as much "
        f"({wall['best'] / wall['crw']:.2f} times by the clock of a busy machine)."
    )


def confidence_found(found: dict[str, Any]) -> str:
    """How the confidence goes with J."""
    sure = found["confidence"]
    return (
        f"Confidence beside J, {sure['frames']} frames: Spearman {sure['spearman']:.2f}, at least "
        f"{sure['spearman without one sequence, least']:.2f} without any one sequence. Mean J of the "
        f"{sure['frames below the threshold']} frames below {sure['threshold']}: {sure['mean J below']:.2f}; of the "
        f"others {sure['mean J above']:.2f}."
    )


def block() -> str:
    """The tables of docs/best_protocol.md."""
    found = json.loads(RESULTS.read_text())
    return "\n\n".join(part(found) for part in (table, by_sequence, time_spent, confidence_found))


def of(scores: list[float]) -> str:
    """J&F of a pair, in per cent."""
    return f"{50 * sum(scores):.1f}"


def save(found: dict[str, Any]) -> None:
    """Write the results file."""
    RESULTS.write_text(json.dumps(found) + "\n")


def main() -> None:
    """Measure or time, as the options say."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--davis", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--presets", action="store_true", help="measure the published presets, too: hours")
    parser.add_argument("--confidence", action="store_true")
    parser.add_argument("--time", action="store_true")
    arguments = parser.parse_args()
    found = json.loads(RESULTS.read_text()) if RESULTS.exists() else {}
    sequences = read_davis(arguments.davis, "val", "2017", None) if arguments.davis else []
    if arguments.confidence:
        found["confidence"] = measure_confidence(sequences, arguments.work)
        save(found)
    elif arguments.work:
        names = [*ROWS, *(OWN_SIZE if arguments.presets else ())]
        measure_rows(names, sequences, arguments.work, arguments.processes, found)
    if arguments.time:
        found["seconds"] = measure_time([s for s in sequences if s.name in ("camel", "dog")])
        save(found)


if __name__ == "__main__":
    main()
