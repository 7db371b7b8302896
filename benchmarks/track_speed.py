"""How fast `timecycle track` is from a video to its results, beside each of its stages alone.

    python -m benchmarks.track_speed VIDEO --mask MASK [--frames 40]     # writes benchmarks/results/track_speed.json

MASK is one of frame 0. Seconds are per frame, the least of several rounds; stages and the whole take turns.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from timecycle import cli
from timecycle.data.masks import mask_png
from timecycle.data.person_masks import read_any_mask
from timecycle.data.source import Wanted, open_source
from timecycle.features.named import DEFAULT, Features
from timecycle.files import write_json
from timecycle.propagation.frames import encode_frames
from timecycle.propagation.protocols import protocol
from timecycle.propagation.video import labels_of_masks, propagate_features, rules_for
from timecycle.provenance import commit
from timecycle.viewing.overlays import OverlayVideo, Style, paint

RESULTS = Path(__file__).parent / "results" / "track_speed.json"
ROUNDS = 3


def stages(video: Path, mask: Path, frames: int, out: Path) -> dict[str, Callable[[], Any]]:
    """The stages by name, each a call that works on what the one before it left."""
    rules = protocol("best", first_mask="given")
    extractor = Features(DEFAULT, torch.device("cpu"), torch.float32, rules.mean, rules.std)
    rules = rules_for(extractor, rules)
    labels_at = labels_of_masks({0: read_any_mask(mask)[0]}, rules, corrections=True)
    held: dict[str, Any] = {}

    def decode() -> None:
        held["decoded"] = list(open_source(video).forward(Wanted(0, frames - 1)))

    def encode() -> None:
        held["encoded"] = list(encode_frames([frame.rgb for frame in held["decoded"]], extractor, rules, read_ahead=0))

    def propagate() -> None:
        held["propagated"] = list(propagate_features(held["encoded"], rules, labels_at))

    def masks() -> None:
        held["masks"] = [frame.mask() for frame in held["propagated"]]
        held["png"] = [mask_png(found) for found in held["masks"]]

    def overlay() -> None:
        height, width = held["masks"][0].shape
        writer = OverlayVideo(out / "overlay.mp4", (width, height))
        for frame, found in zip(held["decoded"], held["masks"], strict=True):
            writer.add(paint(frame.rgb, found, Style(ids=True)), frame.time)
        writer.close()
        (out / "overlay.mp4").unlink()

    return {"decode": decode, "features": encode, "propagation": propagate, "masks": masks, "overlay": overlay}


def main() -> None:
    """Measure and write the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("video", type=Path)
    parser.add_argument("--mask", type=Path, required=True)
    parser.add_argument("--frames", type=int, default=40)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        calls = stages(arguments.video, arguments.mask, arguments.frames, Path(folder))

        def whole() -> None:
            words = ["--mask", arguments.mask, "--to", arguments.frames - 1, "--overwrite", "--quiet"]
            cli.run(["track", *map(str, [arguments.video, "-o", Path(folder) / "out", *words])])

        calls["track, all of them"] = whole
        seconds = {name: float("inf") for name in calls}
        for _ in range(ROUNDS):
            for name, call in calls.items():
                start = time.perf_counter()
                with torch.inference_mode():
                    call()
                seconds[name] = min(seconds[name], (time.perf_counter() - start) / arguments.frames)
    alone = [value for name, value in seconds.items() if not name.startswith("track")]
    whole_seconds = seconds["track, all of them"]
    found = {
        "commit": commit(),
        "machine": {"cpu": torch.backends.cpu.get_cpu_capability(), "threads": torch.get_num_threads()},
        "frames": arguments.frames,
        "seconds": {name: round(value, 4) for name, value in seconds.items()},
        "frames_per_second": round(1 / whole_seconds, 2),
        "of_the_sum": round(whole_seconds / sum(alone), 3),
        "of_the_slowest": round(whole_seconds / max(alone), 3),
    }
    write_json(RESULTS, found)
    print(json.dumps(found, indent=1))


if __name__ == "__main__":
    main()
