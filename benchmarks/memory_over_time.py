"""Memory over time of label propagation through one video: ours beside CRW's published functions (`rivals.py`).

    python -m benchmarks.memory_over_time     # minutes; writes benchmarks/results/memory_over_time.json; Linux only

Both propagate the same first mask through the same features under preset `crw`, one after the other, each in a process
of its own, and their masks are compared. Memory is resident memory beyond that at the start, when the features of all
frames are loaded in the layout that the method takes. Times depend on the machine's load, so only their ratio is kept.
`docs/pictures/make_propagation.py` draws the results.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from itertools import chain, pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from benchmarks import rivals
from benchmarks.compare import reset_peak, status_kb
from timecycle.data.synthetic import Motion, Scene
from timecycle.errors import InputError
from timecycle.features.named import DEFAULT, Features
from timecycle.files import write_json
from timecycle.ops.selection import inside
from timecycle.propagation.frames import EncodedFrame, Sizes, encode_frames
from timecycle.propagation.labels import index_mask, soft_labels
from timecycle.propagation.protocols import mask_protocol
from timecycle.propagation.video import labels_of_masks, propagate_features
from timecycle.provenance import commit, versions

RESULTS = Path(__file__).parent / "results" / "memory_over_time.json"
METHODS = ("ours", "theirs")
RULES = mask_protocol("crw")
SIZE = (480, 854)
FRAMES = 25
SEED, OBJECTS = 100, 3
MOTION = Motion(area=0.045, speed=0.013, crossing=1.0, spin=0.03, swell=0.12, noise=1.5)
SAMPLES = 16  # kept of a frame, each the maximum of a part of its time
INTERVAL = 0.005  # seconds between two readings


def scene(frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Scene:
    """The video."""
    return Scene(SEED, frames, *size, OBJECTS, MOTION)


def encoded(video: Scene, frames: int) -> Tensor:
    """The shipped features of its frames, float32 [F, D, h, w]."""
    extractor = Features(DEFAULT, torch.device("cpu"), torch.float32, RULES.mean, RULES.std)
    images = (video.frame(time)[0] for time in range(frames))
    return torch.stack([frame.features for frame in encode_frames(images, extractor, RULES)])


def ours(features: Tensor, mask: np.ndarray) -> Iterator[np.ndarray]:
    """Masks of frames 0, 1, ..., as every evaluation here computes them."""
    size, grid = (mask.shape[0], mask.shape[1]), (features.shape[2], features.shape[3])
    sizes = Sizes(size, size, grid)
    frames = (EncodedFrame(feature, sizes) for feature in features)
    for frame in propagate_features(frames, RULES, labels_of_masks({0: mask}, RULES), length=len(features)):
        yield frame.mask()


def theirs(features: Tensor, mask: np.ndarray) -> Iterator[np.ndarray]:
    """The same by CRW's functions."""
    height, width = features.shape[2:]
    allowed = inside(width, RULES.neighborhood(height, width).half_widths(), height * width, features.device)
    rows = features.flatten(2).transpose(1, 2).contiguous()
    labels = soft_labels(mask, RULES, (height, width), mask.shape)
    soft = torch.from_numpy(labels.soft).flatten(1).T.contiguous()
    found = rivals.propagate("crw", rows, soft, allowed, RULES.length, RULES.k, RULES.temperature)
    grids = (one.T.reshape(-1, height, width) for one in found)
    return chain([mask], (index_mask(grid, labels.ids, RULES, mask.shape, mask.shape) for grid in grids))


def run(method: str, folder: Path) -> None:
    """Propagate in this process; print a line per frame: clock and CPU seconds at its end, and its peak in bytes."""
    features, mask = torch.load(folder / "features.pt"), np.load(folder / "mask.npy")
    masks = np.full((len(features), *mask.shape), 255, np.uint8)  # filled, so that they are resident
    work = {"ours": ours, "theirs": theirs}[method]
    list(work(features[:3, :, :8, :8].contiguous(), np.tri(64, dtype=np.uint8)))  # starts threads and loads libraries
    propagated = work(features, mask)
    del features
    reset_peak()
    start = status_kb("VmRSS") * 1024
    print(time.monotonic(), time.process_time(), start, flush=True)
    with torch.inference_mode():
        for index, found in enumerate(propagated):
            masks[index] = found
            print(time.monotonic(), time.process_time(), status_kb("VmHWM") * 1024 - start, flush=True)
            reset_peak(trim=False)
    np.save(folder / f"{method}.npy", masks)


def measured(method: str, folder: Path) -> tuple[dict[str, Any], float, float]:
    """A method's memory by frame, and the CPU and clock seconds that it took."""
    command = [sys.executable, "-m", "benchmarks.memory_over_time", "--run", method, "--folder", str(folder)]
    readings: list[tuple[float, int]] = []
    with (folder / f"{method}.txt").open("w") as output, subprocess.Popen(command, stdout=output) as process:
        resident, page = Path(f"/proc/{process.pid}/statm"), os.sysconf("SC_PAGE_SIZE")
        while process.poll() is None:
            fields = resident.read_text().split()
            readings.append((time.monotonic(), int(fields[1]) * page if fields else 0))
            time.sleep(INTERVAL)
    if process.returncode:
        raise InputError(f"{' '.join(command)} ended with status {process.returncode}; expected 0")
    lines = np.array([line.split() for line in (folder / f"{method}.txt").read_text().splitlines()], np.float64)
    (clock, cpu, peaks), (at, memory) = lines.T, np.array(readings).T
    found = {"peak_mb": megabytes(peaks[1:]), "samples_mb": megabytes(by_frame(clock, at, memory) - peaks[0])}
    return found, cpu[-1] - cpu[0], clock[-1] - clock[0]


def by_frame(ends: np.ndarray, at: np.ndarray, memory: np.ndarray) -> np.ndarray:
    """The largest reading in each of the SAMPLES equal parts of every frame's time, [frames, SAMPLES].

    ends: when the first frame began, then when each ended; at: when each of the readings `memory` was made. A part
    without readings has the one before it.
    """
    found = np.empty((len(ends) - 1, SAMPLES))
    for frame, (begin, end) in enumerate(pairwise(ends)):
        edges = np.searchsorted(at, np.linspace(begin, end, SAMPLES + 1))
        for part, (first, last) in enumerate(pairwise(edges)):
            found[frame, part] = memory[max(0, min(first, last - 1)) : max(last, 1)].max()
    return found


def megabytes(memory: np.ndarray) -> list[Any]:
    """Bytes as MB of 1e6 bytes."""
    return np.round(memory / 1e6, 1).tolist()


def main() -> None:
    """Measure both and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--frames", type=int, default=FRAMES)
    parser.add_argument("--run", choices=METHODS, help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.run:
        run(arguments.run, arguments.folder)
        return
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        features = encoded(scene(arguments.frames), arguments.frames)
        torch.save(features, folder / "features.pt")
        np.save(folder / "mask.npy", scene(arguments.frames).frame(0)[1])
        found = {method: measured(method, folder) for method in METHODS}
        masks = {method: np.load(folder / f"{method}.npy") for method in METHODS}
    agreement = float(np.mean(masks["ours"] == masks["theirs"]))
    assert agreement > 0.9995, f"{agreement:.2%} of the pixels agree with the published implementation"
    content = {
        "commit": commit(),
        "machine": {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "versions": versions(),
        "size": list(SIZE),
        "features": list(features.shape),
        "equal_pixels": round(agreement, 6),
        "methods": {method: memory for method, (memory, _, _) in found.items()},
        "ours_of_theirs": {
            "cpu_time": round(float(found["ours"][1] / found["theirs"][1]), 4),
            "clock": round(float(found["ours"][2] / found["theirs"][2]), 4),
            "peak": round(max(found["ours"][0]["peak_mb"]) / max(found["theirs"][0]["peak_mb"]), 4),
        },
    }
    write_json(RESULTS, content)
    print(content["ours_of_theirs"], {name: max(memory["peak_mb"]) for name, (memory, _, _) in found.items()})


if __name__ == "__main__":
    main()
