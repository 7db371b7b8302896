"""The files of a run of train.py, and comparisons of two runs."""

import json
from pathlib import Path
from typing import Any

import torch


def latest(folder: Path | str) -> dict[str, Any]:
    """The newest checkpoint."""
    return torch.load(Path(folder) / "latest.pt", weights_only=True)


def log(folder: Path | str) -> list[dict[str, float]]:
    """The entries of log.jsonl."""
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Assert bitwise equality of nested containers and their tensors."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(found, expected), place
    elif isinstance(expected, dict):
        assert found.keys() == expected.keys(), place
        for key in expected:
            assert_same(found[key], expected[key], f"{place}/{key}")
    elif isinstance(expected, list | tuple):
        assert len(found) == len(expected), place
        for index, value in enumerate(expected):
            assert_same(found[index], value, f"{place}/{index}")
    else:
        assert found == expected, place


def assert_same_run(found: Path | str, expected: Path | str) -> None:
    """Assert equality of the training states and the logs."""
    ours, theirs = latest(found), latest(expected)
    for part in ("model", "optimizer", "schedule", "progress", "random"):
        assert_same(ours[part], theirs[part], part)
    assert log(found) == log(expected)
