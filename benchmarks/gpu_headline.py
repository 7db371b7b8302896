"""The headline case: python -m benchmarks.gpu_headline cuda|triton|plain; with --once for a profiler.

N = M = 3600, D = 512, T = 8, bfloat16, softmax over all keys of each frame; B = 16 and 1, k = 5 and 20. "Kernel" is
the launch from features to candidates; the call also merges them and computes the weights. torch.mm of the same shape
and dtype is timed in the same process. Times are microseconds per target frame.
"""

import argparse
import importlib
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.gpu_cases import (
    TEMPERATURE,
    Case,
    Video,
    check_forward,
    forward,
    materialized,
    rotating_videos,
    smaller,
)
from benchmarks.gpu_setting import TINY, attempt, device, say
from benchmarks.gpu_timing import measure, peak_mb
from timecycle.errors import run_command_line
from timecycle.ops import Select

TARGETS, KEPT = (16, 1), (5, 20)
MODULES = {"cuda": "timecycle.kernels.topk_affinity_cuda", "triton": "timecycle.kernels.topk_affinity"}


def case(targets: int, k: int, backend: str | None) -> Case:
    """The headline case; in a rehearsal a small one of the same kind."""
    found = Case("headline", "bfloat16", Select(k, TEMPERATURE, "frame", "all"), targets, backend=backend)
    return smaller(found) if TINY else found


def kernel_alone(work: Case, video: Video) -> Callable[[], object]:
    """The kernel launches of a call, recorded, without what the call does before and after them."""
    module = importlib.import_module(MODULES[work.backend or "triton"])
    launch, seen = module.best_of_groups, []

    def record(*arguments: Any, **options: Any) -> Any:
        seen.append(partial(launch, *arguments, **options))
        return launch(*arguments, **options)

    module.best_of_groups = record
    try:
        forward(work, video)
    finally:
        module.best_of_groups = launch
    assert seen, f"{module.__name__} has launched nothing"

    def run() -> None:
        for again in seen:
            again()

    return run


def matrix_product(work: Case, video: Video) -> Callable[[], object]:
    """torch.mm(out=) of every target's queries with all its keys: the same products, materialized."""
    banks = [video.bank[b : b + work.slots].flatten(0, 1) for b in range(work.targets)]
    out = video.query.new_empty((video.query.shape[1], len(banks[0])))

    def run() -> None:
        for query, bank in zip(video.query, banks, strict=True):
            torch.mm(query, bank.T, out=out)

    return run


def ours(targets: int, k: int, backend: str, where: torch.device) -> dict[str, Any]:
    """Check a backend's call, then time its kernel, the call and torch.mm, per target frame."""
    work = case(targets, k, backend)
    videos = rotating_videos(work, where)
    check_forward(work, videos[0])
    timed = {
        "kernel": measure([kernel_alone(work, video) for video in videos], where, 0.3, queued=True),
        "mm": measure([matrix_product(work, video) for video in videos], where, 0.3, queued=True),
        "call": measure([partial(forward, work, video) for video in videos], where, 0.3),
        "call without the host": measure([partial(forward, work, video) for video in videos], where, 0.3, queued=True),
    }
    us = {name: timing["us"] / targets for name, timing in timed.items()}
    return {
        **{f"{name.replace(' ', '_')}_us": round(time, 2) for name, time in us.items()},
        "kernel_share_of_mm": round(us["mm"] / us["kernel"], 4),
        "call_over_kernel": round(us["call"] / us["kernel"], 4),
        "kernel_tflops": round(work.operations / us["kernel"] / 1e6, 1),
        "mm_tflops": round(work.operations / us["mm"] / 1e6, 1),
        "peak_mb": peak_mb(partial(forward, work, videos[0]), where),
        "spread": {name: [timing["us_low"], timing["us_high"], timing["rounds"]] for name, timing in timed.items()},
    }


def plain(targets: int, k: int, where: torch.device) -> dict[str, Any]:
    """Time the materialized form in PyTorch: all affinities, softmax, top-k."""
    work = case(targets, k, None)
    calls = [materialized(work, video, compiled=False) for video in rotating_videos(work, where)]
    return {"eager_us": round(measure(calls, where, 0.3)["us"] / min(2, targets), 2)}


def warm(k: int, backend: str, where: torch.device) -> dict[str, Any]:
    """Run the calls once to fill the compilation caches."""
    for targets in TARGETS:
        work = case(targets, k, backend)
        forward(work, Video.random(work, 0, where))
    return {}


def main() -> None:
    """Time a backend, or run it a few times without timing."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu_headline", description=__doc__.splitlines()[0])
    parser.add_argument("backend", choices=("cuda", "triton", "plain"))
    parser.add_argument("--once", action="store_true", help="run the kernel of B = 16, k = 5 three times, no timing")
    parser.add_argument("--warm", type=int, metavar="K", help="run the calls of this k once, no timing")
    options = parser.parse_args()
    where = device()
    if options.warm:
        name = f"warmed: headline {options.backend}, k = {options.warm}"
        attempt(name, partial(warm, options.warm, options.backend, where))
        return
    if options.once:
        work = case(16, 5, options.backend)
        run = kernel_alone(work, Video.random(work, 0, where))
        for _ in range(2):
            run()
        say({"name": "ran three times"})
        return
    for targets in TARGETS:
        for k in KEPT:
            name = f"headline {options.backend}, B = {targets}, k = {k}"
            if options.backend == "plain":
                attempt(name, partial(plain, targets, k, where))
            else:
                attempt(name, partial(ours, targets, k, options.backend, where))


if __name__ == "__main__":
    run_command_line(main)
