"""Where a step of make gpu-check works and how it speaks: on the GPU; in a rehearsal on a CPU, with tiny shapes.

A step is a program that prints a line of JSON for everything it finds out: an object with a "name", and an "error" if
that is what came of it. Everything else it prints is for a reader.
"""

import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_steps import REHEARSAL
from benchmarks.gpu_timing import TINY, one_line
from timecycle.errors import InputError
from timecycle.ops import backends

CANNOT_GO_ON = 3  # the status of a process whose CUDA context is dead


def device(hopper: bool = True) -> torch.device:
    """The device to work on. In a rehearsal it is the CPU, and backend "cuda" is the emulator of either kind of chip.

    Raises InputError where there is no GPU, and for a rehearsal where there is one: the emulator is never taken there.
    """
    if torch.cuda.is_available():
        if TINY:
            raise InputError("there is a GPU; expected make gpu-check there, not a rehearsal of it")
        return torch.device("cuda")
    if not TINY:
        raise InputError("there is no GPU that PyTorch can use; make gpu-check needs one")
    from tests import emulator

    emulator.use(emulator.build(), hopper)
    return torch.device("cpu")


def say(found: dict[str, Any]) -> None:
    """Print what was found out."""
    print(json.dumps(found), flush=True)


def attempt(name: str, find: Callable[[], dict[str, Any]]) -> None:
    """Say what `find` returns under a name, or its error. Ends the process if CUDA can do nothing after the error."""
    try:
        found = {"name": name} | find()
    except Exception as error:
        found = {"name": name, "error": one_line(error)}
    say(found)
    if "error" in found and context_is_dead():
        sys.exit(CANNOT_GO_ON)


def context_is_dead() -> bool:
    """Whether an earlier kernel's fault makes everything fail that this process asks of its GPU."""
    if not torch.cuda.is_available():
        return False
    try:
        torch.cuda.synchronize()
        torch.ones(1, device="cuda").item()
    except RuntimeError:
        return True
    return False


@contextmanager
def poisoned() -> Iterator[None]:
    """Memory that nobody wrote is full of NaN, so that what a kernel leaves out is seen."""
    # PyTorch's own products on a GPU have no deterministic form; it warns, and that is all.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        assert torch.empty(1000, device="cuda" if torch.cuda.is_available() else "cpu").isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def not_interpreted() -> Iterator[None]:
    """In a rehearsal without Triton's kernels, of which a whole training step would take minutes."""
    before, backends.INTERPRETED = backends.INTERPRETED, False
    try:
        yield
    finally:
        backends.INTERPRETED = before


def program(name: str, *places: str) -> str | None:
    """A program of the CUDA toolkit, also where it is in none of PATH's folders; in a rehearsal what stands for it."""
    if TINY:
        return str(Path(os.environ[REHEARSAL]) / name)
    folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", *(x for place in places for x in sorted(glob(place)))]
    return shutil.which(name, path=os.pathsep.join(folders))
