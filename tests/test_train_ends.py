"""train.py ends after every fault: soon, with one sentence, and without processes left."""

import multiprocessing
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import copy_list
from tests.crash.processes import Zygotes, zygotes
from tests.test_train_processes import torchrun
from tests.tiny_training import CLIPS, WALK
from tests.training_runs import assert_same_run, latest
from timecycle.training.distributed import StopRequest

ROOT = Path(__file__).parents[1]
SOON = 10.0
"""Seconds from a fault to the end."""


@dataclass
class Ended:
    """How a run of the tiny train.py ended."""

    code: int | None
    out: str
    err: str
    at: float
    """time.time() at the end."""
    alone: bool
    """Whether its child processes ended soon after it."""

    @property
    def seconds(self) -> float:
        """Time from the requested fault to the end."""
        found = re.search(r"fault at ([\d.]+)", self.out)
        assert found, (self.out, self.err)
        return self.at - float(found[1])

    def is_refused(self, sentence: str, code: int = 2) -> None:
        """Assert that it ended with one line, which contains `sentence`, and left no process."""
        assert (self.code, self.err.count("\n")) == (code, 1), self.err
        assert sentence in self.err
        assert self.alone, "a data loader's worker is left"


@pytest.fixture(scope="module")
def forks() -> Iterator[Zygotes]:
    """Start programs by fork, without the seconds of their imports."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONWARNINGS", "ignore")
        with zygotes(1) as found:
            yield found


@pytest.fixture
def started(tmp_path: Path, training_frames: Path, forks: Zygotes) -> Callable[..., Ended]:
    """Run train.py in its own process group, with workers, in a folder with list.txt; waits for its end."""
    copy_list(training_frames, tmp_path)

    def run(*arguments: object, fault: str = "", workers: int = 2) -> Ended:
        words = [str(word) for word in (*WALK, "-c", "run", *arguments)]
        words[words.index("--workers") + 1] = str(workers)
        begun = time.time()
        done = forks.run("module:tests.tiny_training", words, tmp_path, limit=100, variables={"TINY_FAULT": fault})
        return Ended(done.status, done.out, done.err, begun + done.seconds, done.alone)

    return run


@pytest.fixture
def started_anew(tmp_path: Path, training_frames: Path) -> Callable[..., Ended]:
    """As `started`, in a new interpreter as from the shell."""
    copy_list(training_frames, tmp_path)

    def run(*arguments: object, fault: str = "") -> Ended:
        words = [str(word) for word in (*WALK, "-c", "run", *arguments)]
        words[words.index("--workers") + 1] = "2"
        environment = os.environ | {"TINY_FAULT": fault, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-m", "tests.tiny_training", *words],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )
        try:
            out, err = process.communicate(timeout=100)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            raise
        return Ended(process.returncode, out, err, time.time(), group_ends(process.pid))

    return run


def group_ends(group: int) -> bool:
    """Whether all processes of a group end soon."""
    limit = time.monotonic() + SOON
    while time.monotonic() < limit:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return True
        time.sleep(0.05)
    return False


@pytest.mark.parametrize(
    ("fault", "sentence"),
    [
        ("raise:MemoryError:2", "error: memory is used up (this is how it ends); expected enough, or a smaller"),
        ("raise:OSError:2", "error: the output, or a file, cannot be read or written (this is how it ends); exp"),
        ("worker:SIGKILL:2", "error: a process that prepares samples ended (is killed by signal: Killed); expected it"),
        ("nan:2", "error: the loss of step 2 is nan with the samples "),
    ],
)
def test_a_fault_ends_it_with_one_sentence(started, fault, sentence):
    ended = started("--steps", 1000, fault=fault)
    ended.is_refused(sentence)
    assert ended.seconds < SOON


def test_an_error_of_the_program_ends_it_too(started):
    ended = started("--steps", 1000, fault="raise:AssertionError:2")
    assert ended.code == 1
    assert "AssertionError: this is how it ends" in ended.err
    assert ended.seconds < SOON
    assert ended.alone


def test_two_interrupts_end_it_at_once(started_anew):
    ended = started_anew("--steps", 1000, fault="signals:SIGINT:2")
    ended.is_refused("interrupted; what was finished is kept", code=130)
    assert ended.seconds < SOON


def test_a_signal_that_torchrun_passes_on_is_no_second_one(monkeypatch):
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    with StopRequest() as stop:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert stop.name == "SIGTERM"
        monkeypatch.setattr("timecycle.training.distributed.ECHO", 0)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_its_workers_end_when_it_is_killed(started_anew):
    ended = started_anew("--steps", 1000, fault="signal:SIGKILL:2")
    assert ended.code == -9
    assert ended.alone


def test_a_worker_ignores_sigterm(started):
    ended = started(fault="worker:SIGTERM:2")
    assert ended.code == 0, ended.err


def test_unusable_clips_end_it(started, tmp_path):
    for number in range(CLIPS):
        for path in (tmp_path / f"clip{number}").iterdir():
            path.write_bytes(b"junk")
    ended = started()
    ended.is_refused(f"error: none of the {CLIPS} clips is of use; ")
    assert not (tmp_path / "run" / "encoder.safetensors").exists()


def test_removed_clips_end_it(started, tmp_path):
    (tmp_path / "data").mkdir()
    for number in range(CLIPS):
        (tmp_path / f"clip{number}").rename(tmp_path / "data" / f"clip{number}")
    lines = (tmp_path / "list.txt").read_text().replace(str(tmp_path), str(tmp_path / "data"))
    (tmp_path / "list.txt").write_text(lines)
    ended = started("--steps", 1000, fault="remove:data:2")
    ended.is_refused(f"error: none of the {CLIPS} clips is of use; ")
    assert ended.seconds < SOON


def test_a_file_in_place_of_the_folder_ends_it(started, tmp_path):
    (tmp_path / "file").touch()
    begun = time.monotonic()
    started("-c", "file").is_refused("error: file cannot be written (File exists); expected a place that can")
    started("-c", "file/run").is_refused("error: file/run cannot be written (Not a directory); expected a place that")
    assert time.monotonic() - begun < 60


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of a megabyte; skipped where none can be mounted (only root can)."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, text=True)
    if mounted.returncode:
        pytest.skip(f"no small file system can be mounted: {mounted.stderr.strip()}")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("size", [1 << 20, 900_000])
def test_a_full_disk_ends_it(started, small_disk, size):
    """At the start, and when a checkpoint is written."""
    (small_disk / "other").write_bytes(bytes(size))
    ended = started("-c", small_disk / "run", "--save-every", 1)
    ended.is_refused("cannot be written (No space left on device); expected a place that can, with room")
    assert ("checkpoint_0000001.pt" in ended.err) == (size == 900_000)
    assert not list(small_disk.rglob("*.partial"))


@pytest.mark.parametrize("rank", ["", "1/"], ids=["both", "rank 1"])
def test_a_failing_rank_ends_all(tmp_path, training_frames, rank):
    """One error is printed, whichever ranks failed."""
    copy_list(training_frames, tmp_path)
    options = [str(word) for word in (*WALK, "--steps", "1000", "-c", "run", "--resume", "auto")]
    options[options.index("--workers") + 1] = "1"
    done = torchrun(tmp_path, *options, fault=f"{rank}raise:MemoryError:2")
    ended = time.time()
    assert done.returncode
    assert "error: memory is used up (this is how it ends); expected enough" in done.stderr
    assert done.stderr.count("error: ") == 1
    assert "RuntimeError" not in done.stderr
    begun = max(float(found) for found in re.findall(r"fault at ([\d.]+)", done.stdout))
    assert ended - begun < 2 * SOON  # torchrun takes some seconds itself
    assert not (tmp_path / "run" / "latest.pt").exists()


def test_a_run_that_failed_is_resumed(tiny):
    options = list(map(str, WALK))
    options[options.index("--workers") + 1] = "2"
    assert tiny(*options, "-c", "whole").code == 0
    failed = tiny(*options, "--save-every", 1, "-c", "run", fault="worker:SIGKILL:3")
    assert (failed.code, failed.err.count("\n")) == (2, 1)
    assert "error: a process that prepares samples ended (is killed by signal: Killed)" in failed.err
    assert not multiprocessing.active_children()
    assert latest("run")["progress"]["step"] in (2, 3)
    assert tiny(*options, "-c", "run", "--resume", "auto").code == 0
    assert_same_run("run", "whole")
