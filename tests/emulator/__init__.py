"""The CUDA kernels on a CPU: csrc/cuda compiled as C++ with emulator.h, which describes the emulation."""

import fcntl
import hashlib
import importlib
import importlib.util
import shutil
import subprocess
import sysconfig
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pybind11

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
CUDA = ROOT / "csrc" / "cuda"
SOURCES = [HERE / "emulator.cpp", HERE / "block_work.cpp", *sorted(CUDA.glob("*.cu")), CUDA / "bindings.cpp"]
SUFFIXES = {".h", ".cpp", ".cu", ".cuh"}
COMPILER = shutil.which("g++") or shutil.which("clang++")
# The fortified longjmp aborts on jumps between the coroutines' stacks.
OPTIONS = ["-std=c++20", "-O1", "-fPIC", "-DTIMECYCLE_EMULATOR", "-U_FORTIFY_SOURCE"]


def build() -> Path:
    """The compiled module, under build/emulator; built only if no build of the same sources and options exists."""
    assert COMPILER is not None
    includes = [f"-I{path}" for path in (HERE, CUDA, pybind11.get_include(), sysconfig.get_path("include"))]
    compiling = [COMPILER, *OPTIONS, *includes]
    seen = hashlib.sha256(" ".join(compiling).encode())
    for path in sorted(x for folder in (HERE, CUDA.parent) for x in folder.rglob("*") if x.suffix in SUFFIXES):
        seen.update(path.read_bytes())
    folder = ROOT / "build" / "emulator"
    folder.mkdir(parents=True, exist_ok=True)
    out = folder / seen.hexdigest()[:16] / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # tests run in several processes
        if not out.is_file():
            with tempfile.TemporaryDirectory(dir=folder) as made:
                objects = [f"{made}/{source.stem}.o" for source in SOURCES]

                def run(source: Path, to: str) -> None:
                    subprocess.run([*compiling, "-c", "-x", "c++", source, "-o", to], check=True)

                with ThreadPoolExecutor() as pool:
                    list(pool.map(run, SOURCES, objects))
                subprocess.run([COMPILER, "-shared", *objects, "-o", f"{made}/module"], check=True)
                out.parent.mkdir(exist_ok=True)
                Path(made, "module").replace(out)
    return out


def load(path: Path) -> ModuleType:
    """The module that `build` made."""
    spec = importlib.util.spec_from_file_location("_cuda", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def use(path: Path, hopper: bool) -> None:
    """Make the emulator the backend "cuda" of this process, for CPU tensors; `hopper`: as sm_90, else as sm_80."""
    from timecycle.kernels.launch import Launch

    from timecycle.kernels import topk_affinity_cuda as kernels

    on = Launch(load(path), 0, 0, hopper)
    kernels.blocks_at_once = lambda device: 5  # so that even small calls are split inside lists
    launch_with(lambda _: on)


def launch_with(on: Callable[[Any], Any]) -> None:
    """Let backend "cuda" accept every call that requests it; `on` makes the Launch from the first argument."""
    from timecycle.kernels import topk_affinity_cuda as kernels
    from timecycle.ops import backends

    run_sequence = importlib.import_module("timecycle.ops.propagate_sequence").run_cuda
    chosen = {
        "topk_affinity": lambda *arguments: kernels.topk_affinity(*arguments, on(arguments[0])),
        "affinity_propagate": lambda *arguments: kernels.affinity_propagate(*arguments, on(arguments[0])),
        "propagate_sequence": lambda *arguments: run_sequence(*arguments, on=on(arguments[0])),
    }
    for operator, run in chosen.items():
        cuda, *others = backends._REGISTERED[operator]
        assert cuda.name == "cuda"
        options = {"why_not": lambda *_: None, "unless_asked": lambda *_: "it was not asked for"}
        backends.register(operator, replace(cuda, missing=None, run=run, **options), *others)
