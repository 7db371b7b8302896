"""The evaluator from end to end, images per second: python -m benchmarks.gpu_evaluator.

Synthetic video at 480p, the shipped network with colors and gradients, TimeCycle's protocol; frames are read from JPEG
files and masks written as in test_davis.py, without overlays. A first run, which compiles, is not timed.
"""

import tempfile
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_setting import TINY, attempt, device
from timecycle.data.sequences import Sequence
from timecycle.data.synthetic import make_davis
from timecycle.errors import run_command_line
from timecycle.evaluation.davis.layout import read_davis
from timecycle.evaluation.davis.masks import write_masks
from timecycle.evaluation.davis.results import ResultsFolder, stage_seconds
from timecycle.evaluation.davis.scores import score_written
from timecycle.features.named import DEFAULT, DTYPES, Features
from timecycle.propagation.protocols import Protocol, mask_protocol


def run(sequences: list[Sequence], dtype: str, rules: Protocol, out: Path, where: torch.device) -> dict[str, Any]:
    """Evaluate; returns images per second, seconds by stage, and J&F."""
    folder = ResultsFolder(out, asdict(rules))
    features = Features(DEFAULT, where, DTYPES[dtype], rules.mean, rules.std)
    start = time.perf_counter()
    write_masks(sequences, features, rules, folder, say=lambda _: None, overlays=False, progress=False)
    seconds = time.perf_counter() - start
    scores = score_written(sequences, folder.path, workers=1)
    images = sum(len(sequence.frames) for sequence in sequences)
    return {
        "images": images,
        "images_per_second": round(images / seconds, 2),
        "seconds": {name: round(value, 2) for name, value in stage_seconds(folder.content).items()},
        "J&F": round(scores.global_["J&F-Mean"], 4),
    }


def main() -> None:
    """Evaluate two sequences with bfloat16 and float32 features."""
    where = device()
    size = {"frames": 2, "height": 48, "width": 64} if TINY else {"frames": 30}
    with tempfile.TemporaryDirectory() as made:
        root = make_davis(Path(made) / "davis", sequences=2, **size)
        first, *rest = sequences = read_davis(root)
        rules = mask_protocol("timecycle", side=32 if TINY else 480)

        def timed(dtype: str) -> dict[str, Any]:
            run([first], dtype, rules, Path(made) / f"{dtype}, first", where)
            return run(rest or sequences, dtype, rules, Path(made) / dtype, where)

        for dtype in ("bfloat16", "float32"):
            attempt(f"evaluator at 480p, {dtype}", lambda dtype=dtype: timed(dtype))


if __name__ == "__main__":
    run_command_line(main)
