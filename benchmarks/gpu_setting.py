"""The device of the programs of make gpu-check, a GPU or in a rehearsal the CPU, and how they report results.

A program prints each result as a line of JSON, an object with a "name", and an "error" if it failed. All other output
is for human readers.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
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
    """The GPU; in a rehearsal the CPU, where the backend "cuda" emulates a Hopper or (`hopper` false) Ampere chip.

    Raises InputError without a GPU, and for a rehearsal where there is a GPU.
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
    """Print a result."""
    print(json.dumps(found), flush=True)


def attempt(name: str, find: Callable[[], dict[str, Any]]) -> None:
    """Print the result of `find`, or its error, under a name. Exits if the error leaves a dead CUDA context."""
    try:
        found = {"name": name} | find()
    except Exception as error:
        found = {"name": name, "error": one_line(error)}
    say(found)
    if "error" in found and context_is_dead():
        sys.exit(CANNOT_GO_ON)


def context_is_dead() -> bool:
    """Whether a kernel's fault has made the GPU unusable for this process."""
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
    """Uninitialized memory is filled with NaN, which shows elements that a kernel does not write."""
    # Only a warning on a GPU, where PyTorch's own matrix products have no deterministic form.
    torch.use_deterministic_algorithms(True, warn_only=torch.cuda.is_available())
    try:
        assert torch.empty(1000, device="cuda" if torch.cuda.is_available() else "cpu").isnan().all()
        yield
    finally:
        torch.use_deterministic_algorithms(False)


@contextmanager
def not_interpreted() -> Iterator[None]:
    """In a rehearsal without Triton's interpreter, in which a whole training step would take minutes."""
    before, backends.INTERPRETED = backends.INTERPRETED, False
    try:
        yield
    finally:
        backends.INTERPRETED = before


def run_under(
    tool: str, places: Sequence[str], options: Sequence[str], program: Sequence[str], **environment: str
) -> subprocess.CompletedProcess:
    """Run a module of benchmarks under a tool of the CUDA toolkit, in a rehearsal under its stub; stderr with stdout.

    places: where the tool may be, beside PATH. Raises FileNotFoundError if it is not installed.
    """
    if TINY:
        found: str | None = str(Path(os.environ[REHEARSAL]) / tool)
    else:
        folders = [os.environ.get("PATH", ""), "/usr/local/cuda/bin", *(x for p in places for x in sorted(glob(p)))]
        found = shutil.which(tool, path=os.pathsep.join(folders))
    if found is None:
        raise FileNotFoundError(f"{tool} is not installed")
    module, *arguments = program
    command = [found, *options, sys.executable, "-m", f"benchmarks.{module}", *arguments]
    return subprocess.run(
        command,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
        env=os.environ | environment,
    )
