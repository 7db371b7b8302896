"""Timing on a GPU: events, medians, and inputs in rotation, so that no call finds its input in the cache.

Everything here also runs on a CPU, for the tests and the rehearsal.
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
"""The dtype of features by precision; "tf32" and "float32" differ in how PyTorch multiplies them."""
CLOCKS = ("clocks.sm", "clocks.mem", "clocks.max.sm", "clocks.max.mem", "power.draw", "power.limit", "temperature.gpu")

TINY = REHEARSAL in os.environ  # small shapes, one round per timing
QUEUEING = 10**8  # GPU cycles to wait until all launches are queued, some 50 ms


@contextmanager
def multiplied_as(precision: str) -> Any:
    """Allow TF32 in matrix products and convolutions for the precision "tf32", and forbid it for all others."""
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
    """An exception's type and message on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:500]


def wait(device: torch.device) -> None:
    """Wait until the device has finished all its work."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rotation(bytes_each: int, device: torch.device) -> int:
    """Number of input sets to use in turn, so that they exceed four times a GPU's L2 cache; at least two."""
    cache = torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
    return max(2, -(-4 * cache // bytes_each))


def measure(
    calls: Sequence[Callable[[], object]], device: torch.device, seconds: float = 0.7, queued: bool = False
) -> dict[str, Any]:
    """Time equal calls with different inputs in turn, for about `seconds`, at least 5 and at most 100 calls.

    With `queued` the GPU starts once all calls are on its stream, which leaves out the host's launch overhead. Returns
    the median, 10th and 90th percentile in microseconds per call, and the number of calls.
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
    """Number of calls that take about `seconds`, after each has run once to warm up."""
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
    """Peak memory in MB that a call allocates beyond what is in use, its result included; None on a CPU."""
    if device.type != "cuda":
        return None
    wait(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    wait(device)
    return round((torch.cuda.max_memory_allocated(device) - before) / 1e6, 2)


def dense_tflops(precision: str, device: torch.device, size: int = 64 if TINY else 8192) -> float:
    """The rate of a large square matrix product of random numbers in PyTorch, TFLOP/s."""
    sets = [[torch.randn(size, size, device=device).to(DTYPES[precision]) for _ in range(3)] for _ in range(2)]
    with multiplied_as(precision):
        timing = measure([lambda a=a, b=b, out=out: torch.mm(a, b, out=out) for a, b, out in sets], device)
    return round(2 * size**3 / timing["us"] / 1e6, 2 if size > 1000 else 8)


def copy_tbs(device: torch.device, count: int = 1 << (10 if TINY else 30)) -> float:
    """The rate of a copy of `count` float32 numbers on the device, TB/s, bytes read plus bytes written."""
    source = torch.randn(count, device=device)
    target = torch.empty_like(source)
    timing = measure([lambda: target.copy_(source)], device)
    return round(2 * source.nbytes / timing["us"] / 1e6, 3)


def nvidia_smi(*fields: str) -> dict[str, str]:
    """Fields of nvidia-smi for the first GPU; empty without nvidia-smi."""
    command = ["nvidia-smi", "--id=0", f"--query-gpu={','.join(fields)}", "--format=csv,noheader"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (value.strip() for value in said.strip().split(",")), strict=True))


def clocks_at_work(device: torch.device, size: int = 64 if TINY else 8192) -> dict[str, str]:
    """Clocks, power and temperature during two seconds of matrix products."""
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
