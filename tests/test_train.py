"""train.py: a run from its settings to its encoder, gone on with bit by bit, and what keeps it from being lost."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from tests import tiny_training
from tests.tiny_training import SIZES, TinyEncoder
from timecycle.files import read_rgb

ROOT = Path(__file__).parents[1]


@pytest.fixture
def tiny(command_line: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable:
    """Run the tiny train.py in a folder of its own with arguments; gives .code, .out and .err."""
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: object, fault: str = ""):
        monkeypatch.setenv("TINY_FAULT", fault)
        return command_line(tiny_training.train.main, *SIZES, *arguments)

    yield run
    torch.set_num_threads(threads)


def latest(folder: str) -> dict[str, Any]:
    return torch.load(Path(folder) / "latest.pt", weights_only=True)


def log(folder: str) -> list[dict[str, float]]:
    return [json.loads(line) for line in (Path(folder) / "log.jsonl").read_text().splitlines()]


def assert_same(found: Any, expected: Any, place: str = "") -> None:
    """Equal in every bit, tensors and all."""
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


def assert_same_run(found: str, expected: str) -> None:
    ours, theirs = latest(found), latest(expected)
    for part in ("model", "optimiser", "schedule", "progress", "random"):
        assert_same(ours[part], theirs[part], part)
    assert log(found) == log(expected)


def test_a_run_leaves_what_it_says(tiny):
    done = tiny("--steps", 4, "-c", "run", "--log-every", 2, "--pictures-every", 2, "-e", "--classNum", 49)
    assert done.code == 0, done.err
    assert "no data given: learning from made video" in done.out
    assert "accepted without effect, as they do not change the result here: --evaluate, --classNum" in done.out
    assert done.out.count("side=64") == 1
    assert "step 2/4  loss " in done.out
    assert " samples/s " in done.out
    assert "over the first 1 of 4 steps" in done.out
    stored = json.loads(Path("run/settings.json").read_text())
    assert stored["settings"]["batch"] == 4
    assert stored["runs"][0]["command"][1:3] == ["--side", "64"]
    assert stored["runs"][0]["versions"]["torch"] == torch.__version__
    assert [line["step"] for line in log("run")] == [1, 2, 3, 4]
    assert {"loss", "skip", "inliers", "cycle/1", "gradient", "lr"} <= log("run")[0].keys()
    picture = read_rgb(Path("run/pictures/0000004.jpg"))
    assert picture.shape == (128, (56 * 2 + 4) + 6 * (64 * 2 + 4), 3)
    encoder = TinyEncoder()
    encoder.load_state_dict(safetensors.torch.load_file("run/encoder.safetensors"))
    learned = latest("run")["model"]
    assert_same(dict(encoder.state_dict()), {name: learned[f"encoder.{name}"] for name in encoder.state_dict()})


def test_resumed_is_uninterrupted(tiny):
    """In the middle of an epoch, with another number of workers, and both TensorBoard and the log without seams."""
    assert tiny("--steps", 6, "-c", "whole").code == 0
    assert tiny("--steps", 3, "-c", "parts").code == 0
    resumed = tiny("--steps", 6, "-c", "parts", "--resume", "auto", "--workers", 1)
    assert resumed.code == 0, resumed.err
    assert "going on from parts/checkpoint_0000003.pt, step 3" in resumed.out
    assert_same_run("parts", "whole")
    board = EventAccumulator("parts/tensorboard").Reload()
    assert [event.step for event in board.Scalars("loss")] == [1, 2, 3, 4, 5, 6]
    assert len(json.loads(Path("parts/settings.json").read_text())["runs"]) == 2


def test_a_signal_saves_and_stops(tiny):
    options = ("--steps", 6, "--schedule", "cosine", "--warmup", 2)
    assert tiny(*options, "-c", "whole").code == 0
    stopped = tiny(*options, "-c", "parts", fault="signal:SIGINT:4")
    assert stopped.code == 0, stopped.err
    assert "stopped by SIGINT after step 4; --resume auto goes on" in stopped.out
    assert latest("parts")["progress"]["step"] == 4
    # Only the folder is named: the checkpoint knows the rest.
    assert tiny("-c", "parts", "--resume", "parts/checkpoint_0000004.pt").code == 0
    assert_same_run("parts", "whole")


def test_a_program_that_is_told_to_end_ends_well(tmp_path):
    command = [sys.executable, "-m", "tests.tiny_training", *SIZES, "--steps", "1000", "-c", str(tmp_path / "run")]
    environment = {**os.environ, "TINY_FAULT": "signal:SIGTERM:2", "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command[command.index("--workers") + 1] = "1"
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert "stopped by SIGTERM after step 2" in done.stdout
    assert latest(str(tmp_path / "run"))["progress"]["step"] == 2
