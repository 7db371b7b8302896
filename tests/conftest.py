"""Fixtures that several test files share."""

import os
import shutil
import signal
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from PIL import Image

from tests import CORES
from tests.browser import chromium

# Processes of pytest-xdist and the programs that they start share the cores. PyTorch reads this on import.
if "PYTEST_XDIST_WORKER_COUNT" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", str(CORES))

import torch

from timecycle.data.masks import write_mask
from timecycle.errors import run_command_line
from timecycle.models.encoder import Encoder
from timecycle.ops import backends
from timecycle.ops.backends import NATIVE_MISSING
from timecycle.ops.problem import Problem

# Background jobs of a shell ignore SIGINT; the programs that the tests start and interrupt would inherit that.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    """One more process than there are cores: tests also wait, for a disk and for what they start."""
    return (os.cpu_count() or 1) + 1


# Files of half a minute and more, which run first, so that no worker has one left when the others have ended.
LONG = (
    "test_cuda_kernels", "test_gpu_check", "test_kernels", "test_kernels_compile", "test_cuda_compile",
    "test_propagation", "test_train_ends", "test_timecycle", "test_evaluation",
)  # fmt: skip


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, in the order of LONG."""
    items.sort(key=lambda item: LONG.index(item.path.stem) if item.path.stem in LONG else len(LONG))


def forced(products: str, plain: bool) -> Callable[..., tuple[torch.Tensor, ...]]:
    """The compiled kernel with given products, with or without AVX-512 loops, instead of its own choice."""

    def run(problem: Problem) -> tuple[torch.Tensor, ...]:
        backends.NATIVE.switch_avx512_off(plain)
        try:
            return backends.NATIVE.topk_affinity(problem, products)
        finally:
            backends.NATIVE.switch_avx512_off(False)

    return run


# The kernel chooses the fastest products of the chip; forcing others covers all branches on any machine.
REGISTERED = backends._REGISTERED["topk_affinity"]
NATIVE_TOPK = next(backend for backend in REGISTERED if backend.name == "cpu")
FORCED = [
    backends.Backend(name, NATIVE_MISSING, NATIVE_TOPK.why_not, forced(products, plain))
    for name, products, plain in (
        ("cpu, bytes", "bytes", False),
        ("cpu, plain loops", "direct", True),
        ("cpu, bytes, plain loops", "bytes", True),
    )
]
backends.register("topk_affinity", *REGISTERED, *FORCED)

# Backends of topk_affinity's contract. CI requires the compiled module (TIMECYCLE_REQUIRE_NATIVE).
NATIVE_NEEDED = pytest.mark.skipif(NATIVE_MISSING is not None, reason=str(NATIVE_MISSING))
BACKENDS = [pytest.param("cpu", marks=NATIVE_NEEDED), "reference"]
ALL_BACKENDS = [*BACKENDS, *(pytest.param(backend.name, marks=NATIVE_NEEDED) for backend in FORCED)]


def on_threads(counts: Iterable[int], run: Callable[[], Any]) -> list[Any]:
    """Results of run() by number of threads."""
    before, found = torch.get_num_threads(), []
    try:
        for count in counts:
            torch.set_num_threads(count)
            found.append(run())
    finally:
        torch.set_num_threads(before)
    return found


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill uninitialized memory with NaN, so that elements that are not written are found."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of reference data: $TIMECYCLE_SHARED, else ../shared beside the repository; skips without it."""
    folder = Path(os.environ.get("TIMECYCLE_SHARED") or Path(__file__).parents[2] / "shared").resolve()
    if not folder.is_dir():
        pytest.skip(f"the reference data are not at {folder} (TIMECYCLE_SHARED says where)")
    return folder


@pytest.fixture(scope="session")
def oracle(shared: Path) -> Path:
    """The recorded inputs and outputs of the original program."""
    return shared / "oracle" / "timecycle"


@pytest.fixture(scope="session")
def oracle_checkpoint(oracle: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoint of the recorded results, in the release's layout and file format."""
    from benchmarks.agreement import write_recorded_checkpoint  # for the few tests that need it

    path = tmp_path_factory.mktemp("oracle") / "checkpoint_14.pth.tar"
    write_recorded_checkpoint(oracle, path)
    return path


def release_layout(encoder: Encoder) -> dict[str, torch.Tensor]:
    """An encoder's tensors under the release's names and shapes, and some that evaluation does not use."""
    state = {}
    for name, value in encoder.state_dict().items():
        name = "afterconv1.weight" if name == "head.weight" else name.replace("trunk.", "encoderVideo.")
        state["module." + name] = value.unsqueeze(2).clone() if value.ndim == 4 else value.clone()
    state["module.encoderVideo.layer4.0.conv1.weight"] = torch.randn(512, 1024, 1, 1, 1)
    state["module.linear2.bias"] = torch.zeros(3)
    return state


@pytest.fixture(scope="session")
def release_checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint in the release's format with random weights."""
    torch.manual_seed(0)
    encoder = Encoder()
    for module in encoder.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
            torch.nn.init.uniform_(module.running_var, 0.9, 1.1)
    path = tmp_path_factory.mktemp("release") / "checkpoint_14.pth.tar"
    torch.save({"epoch": 14, "state_dict": release_layout(encoder)}, path)
    return path


@pytest.fixture
def command_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Run a program's main with arguments, as the shell would; gives .code, .out and .err."""

    def run(main: Callable[[], None], *arguments: object) -> SimpleNamespace:
        monkeypatch.setattr("sys.argv", ["program", *map(str, arguments)])
        code = 0
        try:
            run_command_line(main)
        except SystemExit as ending:
            code = ending.code
        captured = capsys.readouterr()
        return SimpleNamespace(code=code, out=captured.out, err=captured.err)

    return run


def write_sequence(root: Path, name: str, frames: int = 4, size: tuple[int, int] = (64, 48)) -> None:
    """Add a small sequence to a folder in DAVIS layout: a colored square that moves over a gradient."""
    width, height = size
    listing = root / "ImageSets" / "2017" / "val.txt"
    listing.parent.mkdir(parents=True, exist_ok=True)
    with listing.open("a") as file:
        file.write(name + "\n")
    images = root / "JPEGImages" / "480p" / name
    images.mkdir(parents=True)
    ramp = np.linspace(0, 200, width, dtype=np.uint8)
    for i in range(frames):
        mask = np.zeros((height, width), np.uint8)
        mask[12:36, 8 + 2 * i : 32 + 2 * i] = 1
        rgb = np.repeat(np.broadcast_to(ramp, (height, width))[..., None], 3, axis=2).copy()
        rgb[mask == 1] = (220, 40, 30)
        Image.fromarray(rgb).save(images / f"{i:05d}.jpg", quality=95)
        write_mask(root / "Annotations" / "480p" / name / f"{i:05d}.png", mask)


@pytest.fixture
def small_davis(tmp_path: Path) -> Path:
    """A folder in DAVIS layout with two sequences of four 64 x 48 frames."""
    root = tmp_path / "davis"
    write_sequence(root, "first")
    write_sequence(root, "second")
    return root


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """A headless Chromium, see `tests.browser`; skips where there is none."""
    with chromium() as running:
        yield running


@pytest.fixture(scope="session")
def training_frames(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a list of small frames to train on."""
    from tests.tiny_training import write_list

    folder = tmp_path_factory.mktemp("frames")
    write_list(folder)
    return folder


def copy_list(source: Path, folder: Path) -> None:
    """Copy the frames and the list of `training_frames` to another folder."""
    shutil.copytree(source, folder, dirs_exist_ok=True)
    lines = (folder / "list.txt").read_text().replace(str(source), str(folder))
    (folder / "list.txt").write_text(lines)


@pytest.fixture
def tiny(
    command_line: Callable, training_frames: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[Callable]:
    """Run train.py on tiny models in a folder of its own, with list.txt in it; gives .code, .out and .err."""
    from tests import tiny_training

    folder = tmp_path / "tiny"
    copy_list(training_frames, folder)
    monkeypatch.chdir(folder)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)

    def run(*arguments: object, fault: str = "") -> SimpleNamespace:
        monkeypatch.setenv("TINY_FAULT", fault)
        return command_line(tiny_training.train.main, *arguments)

    yield run
    torch.set_num_threads(threads)
