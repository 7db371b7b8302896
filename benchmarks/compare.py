"""Time and memory of an operator and its rivals, measured in turn as README.md says."""

import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

COMPARED: list[tuple[str, dict[str, Any]]] = []
"""(benchmark, its results) of this run, for the summary."""


def compare(
    benchmark: Any,
    ours: Callable[[], Any],
    rivals: dict[str, Callable[[], Any]],
    rounds: int = 5,
    warm: bool = True,
    peaks: dict[str, float | None] | None = None,
) -> None:
    """Time `ours` with pytest-benchmark, and every rival before each of its rounds.

    Stores in extra_info the peak memory of each beyond what was in use, MB; the rivals' medians, s; and for each rival
    the median over rounds of ours / rival, the figure that a noisy machine distorts least. peaks: memory measured
    elsewhere, of "ours" and of each rival by name.
    """
    seconds: dict[str, list[float]] = {name: [] for name in rivals}
    ratios: dict[str, list[float]] = {name: [] for name in rivals}
    if peaks is None:
        peaks = {name: peak_mb(call) for name, call in {"ours": ours, **rivals}.items()}
    benchmark.extra_info["peak_mb"] = peaks["ours"]
    benchmark.extra_info["rival_peak_mb"] = {name: peaks[name] for name in rivals}

    def timed(function: Callable[[], Any]) -> float:
        start = time.perf_counter()
        function()
        return time.perf_counter() - start

    def time_rivals() -> None:
        for name, rival in rivals.items():
            seconds[name].append(timed(rival))

    def time_ours() -> None:
        own = timed(ours)
        for name in rivals:
            ratios[name].append(own / seconds[name][-1])

    benchmark.pedantic(time_ours, setup=time_rivals, rounds=rounds, warmup_rounds=int(warm))
    benchmark.extra_info["rival_seconds"] = {name: statistics.median(s[-rounds:]) for name, s in seconds.items()}
    benchmark.extra_info["ratio_to"] = {name: round(statistics.median(r[-rounds:]), 3) for name, r in ratios.items()}
    COMPARED.append((benchmark.name, benchmark.extra_info | {"seconds": benchmark.stats["median"]}))


def summary() -> list[str]:
    """Our time and memory, and a line per rival: our time in per cent of its, its time and memory."""
    lines = []
    for name, info in COMPARED:
        lines.append(f"{name}: {info['seconds']:.3f} s, {info['peak_mb']} MB")
        lines += [
            f"    {100 * ratio:6.1f} % of {rival} "
            f"({info['rival_seconds'][rival]:.3f} s, {info['rival_peak_mb'][rival]} MB)"
            for rival, ratio in info["ratio_to"].items()
        ]
    return lines


def peak_mb(function: Callable[[], Any]) -> float | None:
    """Peak resident memory of a call beyond what was resident before it, MB; None outside Linux."""
    if sys.platform != "linux":
        return None
    reset_peak()
    before = status_kb("VmRSS")
    function()
    return round((status_kb("VmHWM") - before) * 1024 / 1e6, 1)


def reset_peak(trim: bool = True) -> None:
    """Let VmHWM begin anew; `trim` returns freed memory that is still resident, which a call could reuse unseen."""
    if trim:
        ctypes.CDLL(None).malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def status_kb(field: str) -> int:
    """A field of this process's status, KB: VmRSS is resident memory, VmHWM its peak."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(field + ":"):
            return int(line.split()[1])
    raise RuntimeError(f"/proc/self/status has no {field}")
