"""How often the CUDA scan inserts into its lists: python -m benchmarks.cuda_selection --davis DIR.

Counted in the emulator on features of real video (the shipped network with colors and gradients, crop 480), for one
target with three context frames. Writes benchmarks/results/cuda_selection.json: events per patch and warp for each k,
which benchmarks/cuda_report.py multiplies with the cycles of a stage.
"""

import argparse
import ctypes
import json
import os
from pathlib import Path

os.environ["TRITON_INTERPRET"] = "1"  # must be set before Triton is imported

import torch
from torch import Tensor

from benchmarks.cuda_stages import COUNTS
from tests import emulator
from timecycle.data.images import read_rgb
from timecycle.evaluation.davis.layout import read_davis
from timecycle.features.named import Features
from timecycle.ops import Select, topk_affinity
from timecycle.propagation.frames import preprocess
from timecycle.propagation.protocols import protocol

QUERIES = 1024
"""Query positions of a target that are used, from the top of the grid."""
EVENTS = ("flushes", "rounds", "writes")
"""In the order of chip::Event in csrc/cuda/chip.h."""
TARGET, CONTEXT = 22, (21, 18, 0)
"""Frame numbers of the target and its slots."""


def features(frames: tuple[Path, ...], size: int) -> list[Tensor]:
    """Features [N, D] bfloat16 of the target and its slots, at a crop size."""
    rules, device = protocol("timecycle", side=size), torch.device("cpu")
    extract = Features(("network", "color", "gradients"), device, torch.float32, rules.mean, rules.std)
    images = [preprocess(read_rgb(frames[i]), rules) for i in (TARGET, *CONTEXT)]
    extract.begin(images[0])
    return [extract(image[None])[0].flatten(1).T.bfloat16() for image in images]


def count(found: list[Tensor], k: int, library: ctypes.CDLL) -> dict[str, float]:
    """EVENTS per warp and patch of keys."""
    query, bank = found[0][None, :QUERIES], torch.stack(found[1:])
    counts = (ctypes.c_int64 * len(EVENTS))()
    library.count_events(counts)  # resets the counts
    topk_affinity(query, bank, torch.arange(len(bank))[None], Select(k, 512**-0.5, "frame", "all"), backend="cuda")
    library.count_events(counts)
    # Each patch of 128 queries and 128 keys is processed by four warps.
    patches = 4 * -(-query.shape[1] // 128) * -(-bank.shape[1] // 128) * len(bank)
    return {event: value / patches for event, value in zip(EVENTS, counts, strict=True)}


def main() -> None:
    """Count, and write the file."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.cuda_selection", description=__doc__.splitlines()[0])
    parser.add_argument("--davis", type=Path, required=True, help="DAVIS-2017 layout")
    parser.add_argument("--sequences", nargs="+", default=["blackswan", "bmx-trees", "libby"])
    parser.add_argument("--crop-size", type=int, default=480)
    options = parser.parse_args()
    module = emulator.build()
    emulator.use(module, hopper=True)
    library = ctypes.CDLL(str(module))
    wanted = read_davis(options.davis, names=options.sequences)
    found = [features(sequence.frames, options.crop_size) for sequence in wanted]
    content: dict[str, object] = {
        "what": "per patch of keys and warp, sm_90a, features network+colour+gradients, mean of sequences",
        "sequences": options.sequences,
        "crop size": options.crop_size,
        "frames": {"target": TARGET, "slots": CONTEXT},
    }
    for k in (5, 10, 20):
        counts = [count(one, k, library) for one in found]
        content[str(k)] = {name: round(sum(c[name] for c in counts) / len(counts), 3) for name in counts[0]}
        print(k, content[str(k)], flush=True)
    COUNTS.write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
