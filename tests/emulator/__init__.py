"""The CUDA kernels on a CPU: csrc/cuda compiled as C++ against emulator.h, which says how a GPU is imitated."""

import importlib
import importlib.util
import shutil
import subprocess
import sysconfig
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import pybind11

HERE = Path(__file__).parent
SOURCES = [
    *sorted((HERE.parents[1] / "csrc" / "cuda").glob("*.cu")),
    HERE.parents[1] / "csrc" / "cuda" / "bindings.cpp",
]
COMPILER = shutil.which("g++") or shutil.which("clang++")


def build(folder: Path) -> Path:
    """Compile the module into a folder."""
    assert COMPILER is not None
    out = folder / f"_cuda{sysconfig.get_config_var('EXT_SUFFIX')}"
    includes = [HERE, SOURCES[0].parent, pybind11.get_include(), sysconfig.get_path("include")]
    # The coroutines jump between stacks, which a fortified longjmp takes for an attack.
    options = ["-std=c++20", "-O2", "-fPIC", "-shared", "-DTIMECYCLE_EMULATOR", "-U_FORTIFY_SOURCE"]
    command = [COMPILER, *options, *(f"-I{path}" for path in includes), "-o", out, HERE / "emulator.cpp", "-x", "c++"]
    subprocess.run([*command, *SOURCES], check=True)
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
    """From now on backend "cuda" of this process is the emulated one, of either kind of chip, for CPU tensors."""
    from timecycle.kernels.launch import Launch

    from timecycle.kernels import topk_affinity_cuda as kernels
    from timecycle.ops import _backends

    on = Launch(load(path), 0, 0, hopper)
    kernels.blocks_at_once = lambda device: 5
    run_sequence = importlib.import_module("timecycle.ops.propagate_sequence").run_cuda
    emulated = {
        "topk_affinity": lambda *arguments: kernels.topk_affinity(*arguments, on),
        "affinity_propagate": lambda *arguments: kernels.affinity_propagate(*arguments, on),
        "propagate_sequence": lambda *arguments: run_sequence(*arguments, on=on),
    }
    for operator, run in emulated.items():
        cuda, *others = _backends._REGISTERED[operator]
        assert cuda.name == "cuda"
        _backends.register(operator, replace(cuda, missing=None, why_not=lambda *_: None, run=run), *others)
