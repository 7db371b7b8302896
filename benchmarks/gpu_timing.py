"""Timing on a GPU: events, medians, and inputs in rotation, so that no call finds its own in the cache.

Everything here runs on a CPU too, for the tests; benchmarks/gpu_check.py lets only a GPU's figures into a results file.
"""

import os
import statistics
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from benchmarks.gpu_steps import REHEARSAL

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16, "tf32": torch.float32, "float32": torch.float32}
"""What a precision's features are stored as; "tf32" and "float32" differ in how PyTorch is set up to multiply them."""
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu")

TINY = REHEARSAL in os.environ  # one round is then enough, and a small product for a ceiling
QUEUEING = 10**8
"""Cycles that a GPU waits for a queue to fill, some 50 ms."""


@contextmanager
def multiplied_as(precision: str) -> Any:
    """PyTorch set up to multiply float32 as TF32 or as it is, in convolutions, too."""
    places = (torch.backends.cuda.matmul, torch.backends.cudnn)
    before = [place.allow_tf32 for place in places]
    for place in places:
        place.allow_tf32 = precision == "tf32"
    try:
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed


def one_line(error: BaseException) -> str:
    """An exception as one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def wait(device: torch.device) -> None:
    """Until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def cache_bytes(device: torch.device) -> int:
    """The size of a GPU's L2 cache; 0 for a CPU, which needs no rotation to test this code."""
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0


def rotation(bytes_each: int, device: torch.device) -> int:
    """How many input sets of a size must take turns, so that four times the L2 cache lies between two uses of one."""
    return max(2, -(-4 * cache_bytes(device) // bytes_each))


def measure(
    calls: Sequence[Callable[[], object]], device: torch.device, seconds: float = 0.7, queued: bool = False
) -> dict[str, Any]:
    """Time calls that do the same with different inputs, in turn, for about so long, at least 5 and at most 100 times.

    With `queued` the GPU starts when all calls are on its stream, so that what the host takes to launch does not count.
    Returns the median and the fastest and slowest tenth, microseconds of one call, and how many were timed.
    """
    rounds = 1 if TINY else _rounds(calls, device, seconds)
    turns = [calls[i % len(calls)] for i in range(rounds)]
    times = sorted(_events(turns, queued) if device.type == "cuda" else _clock(turns))
    tenth = rounds // 10
    return {
        "us": round(statistics.median(times), 2),
        "us_low": round(times[tenth], 2),
        "us_high": round(times[-1 - tenth], 2),
        "rounds": rounds,
    }


def _rounds(calls: Sequence[Callable[[], object]], device: torch.device, seconds: float) -> int:
    """How many calls last for about so long, once each has run and holds the memory that it takes."""
    for call in calls:
        call()
    wait(device)
    start = time.perf_counter()
    calls[0]()
    wait(device)
    return int(min(100, max(5, seconds / (time.perf_counter() - start))))


def _events(turns: Sequence[Callable[[], object]], queued: bool) -> list[float]:
    marks = [[torch.cuda.Event(enable_timing=True) for _ in range(2)] for _ in turns]
    if queued:
        torch.cuda._sleep(QUEUEING)
    for (start, end), call in zip(marks, turns, strict=True):
        start.record()
        call()
        end.record()
    torch.cuda.synchronize()
    return [1e3 * start.elapsed_time(end) for start, end in marks]


def _clock(turns: Sequence[Callable[[], object]]) -> list[float]:
    times = []
    for call in turns:
        start = time.perf_counter()
        call()
        times.append(1e6 * (time.perf_counter() - start))
    return times


def peak_mb(call: Callable[[], object], device: torch.device) -> float | None:
    """Memory that a call takes at its peak beyond what was held, its result included, MB; None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 2)


def dense_tflops(precision: str, device: torch.device, size: int = 64 if TINY else 8192) -> float:
    """The rate of a large square product of random numbers through PyTorch, TFLOP/s."""
    sets = [[torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(3)] for _ in range(2)]
    with multiplied_as(precision):
        timing = measure([lambda a=a, b=b, out=out: torch.mm(a, b, out=out) for a, b, out in sets], device)
    return round(2 * size**3 / timing["us"] / 1e6, 2 if size > 1000 else 8)


def copy_tbs(device: torch.device, count: int = 1 << (10 if TINY else 30)) -> float:
    """The rate of a large copy of so many float32 numbers on the device, TB/s, bytes read plus bytes written."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    timing = measure([lambda: target.copy_(source)], device)
    return round(2 * source.nbytes / timing["us"] / 1e6, 3)


def nvidia_smi(*fields: str) -> dict[str, str]:
    """What nvidia-smi says of the first GPU; nothing if it is not there."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in said.strip().split(",")), strict=True))


def clocks_at_work(device: torch.device, size: int = 64 if TINY else 8192) -> dict[str, str]:
    """Clocks, power and temperature in the middle of two seconds of products; an idle GPU's say little."""
    a, b = (torch.randn(size, size, device=device, dtype=torch.bfloat16) for _ in range(2))
    out = torch.empty_like(a)
    start = time.perf_counter()
    torch.mm(a, b, out=out)
    wait(device)
    once = time.perf_counter() - start
    for _ in range(int(min(2000, 2 / once))):
        torch.mm(a, b, out=out)
    time.sleep(0.5)
    found = nvidia_smi(*CLOCKS)
    wait(device)
    return found
