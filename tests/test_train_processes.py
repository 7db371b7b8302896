"""train.py on several ranks, or with gradient accumulation: the same batch gives the same weights. Two runs at once."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.tiny_training import CYCLE, WALK
from tests.training_runs import latest, log

ROOT = Path(__file__).parents[1]
EXACT = ("--freeze-batchnorm", "--optim", "sgd", "--schedule", "constant")
EXACT_WALK = (*WALK, "--edge-dropout", "0", "--lr", "1e-4", *EXACT)
EXACT_CYCLE = (*CYCLE, "--lr", "1e-2", *EXACT)
KEPT = ("--save-every", "1", "--keep", "9")


def torchrun(folder: Path, *arguments: str, restarts: int = 0, fault: str = "") -> subprocess.CompletedProcess[str]:
    """Run the tiny train.py on two ranks in a folder."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "--monitor-interval", "0.1"]
    launcher += ["--max-restarts", str(restarts), "-m", "tests.tiny_training"]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "TINY_FAULT": fault}
    return subprocess.run(
        [sys.executable, *launcher, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )


def assert_close_weights(found: Path | str, expected: Path | str) -> None:
    """Compare weights to 1e-6; training must have changed them by more than a hundred times that."""
    ours, theirs = latest(found)["model"], latest(expected)["model"]
    first = torch.load(Path(expected) / "checkpoint_0000001.pt", weights_only=True)["model"]
    assert max(float((theirs[name] - first[name]).abs().max()) for name in theirs) > 1e-4
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("options", [EXACT_WALK, EXACT_CYCLE], ids=["walk", "timecycle"])
def test_accumulated_gradients_give_the_same_weights(tiny, options):
    assert tiny(*options, *KEPT, "-c", "whole").code == 0
    done = tiny(*options, "--accumulate", 2, "-c", "accumulated")
    assert done.code == 0, done.err
    assert_close_weights("accumulated", "whole")
    for ours, theirs in zip(log("accumulated"), log("whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_two_ranks_of_which_one_is_killed_equal_one_process(tiny):
    """Rank 1 is killed in step 4 and both restart from step 2; weights and log are those of an undisturbed run."""
    killed = torchrun(
        Path.cwd(), *EXACT_WALK, "--save-every", "2", "-c", "two", "--resume", "auto", restarts=1, fault="kill:1:4"
    )
    assert killed.returncode == 0, killed.stderr
    assert killed.stderr.count("error: ") <= 1, killed.stderr  # of rank 0, whose peer is gone
    assert "RuntimeError" not in killed.stderr
    assert Path("killed").exists()
    assert "going on from two/checkpoint_0000002.pt, step 2" in killed.stdout
    assert killed.stdout.count("settings (kept in") == 2  # by rank 0, started twice
    assert tiny(*EXACT_WALK, *KEPT, "-c", "one").code == 0
    assert_close_weights("two", "one")
    assert [line["step"] for line in log("two")] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(log("two"), log("one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert len(latest("two")["random"]) == 2


def test_a_signal_to_one_rank_stops_all_after_a_step(tiny):
    done = torchrun(Path.cwd(), *WALK, "--steps", "1000", "-c", "run", fault="1/signal:SIGTERM:2")
    assert done.returncode == 0, done.stderr
    step = latest("run")["progress"]["step"]
    assert step in (2, 3)
    assert f"stopped by another process, which was told to end, after step {step}; --resume auto" in done.stdout


def test_two_processes_started_together_have_folders_of_their_own(tiny):
    environment = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-W", "ignore", "-m", "tests.tiny_training", *CYCLE, "--steps", "2"]
    both = [subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        _, err = process.communicate(timeout=200)
        assert process.returncode == 0, err
    for name in ("train-timecycle-list", "train-timecycle-list-2"):
        assert [line["step"] for line in log(f"out/{name}")] == [1, 2]
