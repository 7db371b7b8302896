"""Programs of one library call; their arguments are those of a command line."""

import json
from dataclasses import asdict
from pathlib import Path

from torch import Tensor
from torch.nn import functional

import timecycle
from timecycle.data.synthetic import make_davis
from timecycle.files import write_json

SMALL = {"side": 64, "k": 2, "progress": False}


def cells(images: Tensor) -> Tensor:
    """Images [B, 3, H, W] -> features [B, 3, H / 8, W / 8]: mean colors."""
    return functional.avg_pool2d(images, 8)


def made_set(root: str, sequences: str, frames: str) -> None:
    """A small synthetic video set."""
    make_davis(Path(root), int(sequences), int(frames), 96, 128)


def davis(root: str, save_path: str) -> None:
    """evaluate_davis of a callable, with a results folder."""
    scores = timecycle.evaluate_davis(cells, root, "timecycle", save_path=save_path, **SMALL)
    write_json(Path(save_path) / "mean.json", scores.global_["J&F-Mean"])


def track(task: str, root: str, out: str) -> None:
    """Write a task's scores to a file, NaN as null."""
    evaluate = getattr(timecycle, f"evaluate_{task}")
    scores = evaluate(cells, Path(root), **SMALL)
    write_json(Path(out), json.loads(json.dumps(asdict(scores)).replace("NaN", "null")))


def careless(out: str) -> None:
    """A wrong program: it takes an existing folder as complete, and writes beside it."""
    folder = Path(out)
    if not folder.exists():
        folder.mkdir()
        (folder / "first").write_text("1")
        (folder / "second").write_text("2")
    Path("beside").write_text("3")
