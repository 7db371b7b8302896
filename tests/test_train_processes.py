"""train.py by several processes, and by one in several pieces: the same batch gives the same weights."""

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
    """Two processes of the tiny train.py in a folder."""
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
    """To 1e-6, while from the first step to the last they moved by more than a hundred times that."""
    ours, theirs = latest(found)["model"], latest(expected)["model"]
    first = torch.load(Path(expected) / "checkpoint_0000001.pt", weights_only=True)["model"]
    assert max(float((theirs[name] - first[name]).abs().max()) for name in theirs) > 1e-4
    for name, value in theirs.items():
        torch.testing.assert_close(
            ours[name], value, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}"
        )


@pytest.mark.parametrize("options", [EXACT_WALK, EXACT_CYCLE], ids=["walk", "timecycle"])
def test_pieces_are_the_whole(tiny, options):
    assert tiny(*options, *KEPT, "-c", "whole").code == 0
    done = tiny(*options, "--accumulate", 2, "-c", "pieces")
    assert done.code == 0, done.err
    assert_close_weights("pieces", "whole")
    for ours, theirs in zip(log("pieces"), log("whole"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)


def test_two_processes_are_one_and_a_killed_one_changes_nothing(tmp_path, tiny):
    """Rank 1 is killed in step 4 and both are begun again, from step 2; nobody sees it in the weights or the log."""
    killed = torchrun(
        Path.cwd(), *EXACT_WALK, "--save-every", "2", "-c", "two", "--resume", "auto", restarts=1, fault="kill:1:4"
    )
    assert killed.returncode == 0, killed.stderr
    assert Path("killed").exists()
    assert "going on from two/checkpoint_0000002.pt, step 2" in killed.stdout
    assert killed.stdout.count("settings (kept in") == 2  # one process talks, twice begun
    assert tiny(*EXACT_WALK, *KEPT, "-c", "one").code == 0
    assert_close_weights("two", "one")
    assert [line["step"] for line in log("two")] == [1, 2, 3, 4, 5, 6]
    for ours, theirs in zip(log("two"), log("one"), strict=True):
        assert ours == pytest.approx(theirs, rel=1e-4)
    assert len(latest("two")["random"]) == 2
