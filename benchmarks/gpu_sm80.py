"""The Ampere kernels on a newer GPU: python -m benchmarks.gpu_sm80 MODULE.

MODULE is a CUDA module built as PTX of compute_80 alone (csrc/cuda/build.py --chips compute_80), which the driver
compiles for the GPU at hand. It runs the checks of tests/contract.py and is timed.
"""

import argparse
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from timecycle.kernels.launch import Launch

from benchmarks import gpu_headline
from benchmarks.gpu_setting import TINY, attempt, device
from tests import contract, emulator
from timecycle.errors import run_command_line
from timecycle.ops import backends


def of_ampere(path: Path) -> Callable[[torch.Tensor], Launch]:
    """Launches of the module's Ampere kernels, whatever the chip."""
    module = emulator.load(path)
    return lambda tensor: replace(backends.launch(tensor), module=module, hopper=False)


def check(name: str) -> dict[str, Any]:
    """Run one of the contract's checks."""
    contract.run("cuda", name)
    return {}


def main() -> None:
    """Run one check, time a call, run all other checks."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_sm80", description=__doc__.splitlines()[0])
    parser.add_argument("module", type=Path)
    path, where = parser.parse_args().module, device(hopper=False)
    if not TINY:  # the emulator has the Ampere kernels already
        emulator.launch_with(of_ampere(path))
    first, *others = contract.CHECKS["cuda"]
    attempt(f"sm_80, {first}", partial(check, first))
    attempt("sm_80, B = 16, k = 5", partial(gpu_headline.ours, 16, 5, "cuda", where))
    for name in others[:1] if TINY else others:
        attempt(f"sm_80, {name}", partial(check, name))


if __name__ == "__main__":
    run_command_line(main)
