"""CPU time of one call of the CUDA backend without its kernel launches: python -m benchmarks.cuda_host.

On an H100 calls of one target are bound by this host time. No GPU is used: tensors are small and on the CPU, and only
ratios of these times are meaningful. Prints microseconds of the whole call and of its part below PyTorch's dispatcher,
each the minimum of many rounds.
"""

import argparse
import dataclasses
import timeit
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from timecycle.kernels.launch import Launch

from timecycle.kernels import topk_affinity_cuda
from timecycle.ops import Select, backends, topk_affinity
from timecycle.ops.problem import Problem

ROUNDS, CALLS = 40, 150


class Nothing:
    """A Triton kernel that is not launched."""

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        """A launcher that does nothing."""
        return lambda *arguments, **options: None


@contextmanager
def no_launches() -> Iterator[Launch]:
    """Calls run the host code of the CUDA backend as on a Hopper GPU, with tensors on the CPU.

    tests/stand_in.py covers more, but its tensors record every read, which takes longer than the call.
    """
    nothing: Any = SimpleNamespace(topk_affinity=lambda *arguments: None, lists_of_a_block=lambda hopper: 1)
    there = Launch(nothing, 0, 0, True)
    registered = [
        dataclasses.replace(backend, missing=None, why_not=lambda *_: None) if backend.name == "cuda" else backend
        for backend in backends._REGISTERED["topk_affinity"]
    ]
    with ExitStack() as stack:
        for name, value in (
            ("timecycle.ops.backends.launch", lambda tensor: there),
            ("timecycle.ops.topk_affinity.value_doubts", lambda *arguments: []),  # on a GPU nothing without `check`
            ("timecycle.kernels.topk_affinity.finish", Nothing()),
            ("timecycle.kernels.tiles.programs_at_once", lambda device: 264),
        ):
            stack.enter_context(mock.patch(name, value))
        stack.enter_context(mock.patch.dict(backends._REGISTERED, topk_affinity=tuple(registered)))
        yield there


def main() -> None:
    """Time a call of one target with eight slots, k = 5."""
    argparse.ArgumentParser(prog="python -m benchmarks.cuda_host", description=__doc__.splitlines()[0]).parse_args()
    torch.set_num_threads(1)
    query, bank = torch.zeros(1, 64, 64, dtype=torch.bfloat16), torch.zeros(8, 64, 64, dtype=torch.bfloat16)
    frames, select = torch.arange(8)[None], Select(5, 512**-0.5, "frame", "all")
    problem = Problem.of(query, bank, frames, select, None, None)
    with no_launches() as launch:
        calls = {
            "whole call": lambda: topk_affinity(query, bank, frames, select, backend="cuda", check=False),
            "below the dispatcher": lambda: topk_affinity_cuda.topk_affinity(problem, launch),
        }
        for name, call in calls.items():
            least = min(timeit.repeat(call, number=CALLS, repeat=ROUNDS)) / CALLS
            print(f"{name}: {least * 1e6:.0f} us")


if __name__ == "__main__":
    main()
