"""The measured numbers in the prose, each from a results file: python -m docs.numbers [--write].

In Markdown a measured number is a link to the file that it comes from, whose title is a name in NUMBERS:

    takes [1/43](benchmarks/results/cpu-intel-xeon-processor-6-207.json "crw video, time") of the time

`--write` puts the files' values into the texts. Without it, and in tests/test_docs.py, every problem is an error: a
text that differs from its file, an unknown name, and a number that looks measured, since it has decimals or a unit, but
is no such link. Numbers in code, in generated blocks (docs/generated.py) and in the phrases of SETTINGS are left alone.
"""

import json
import os
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results"
CPU = f"{RESULTS}/cpu-intel-xeon-processor-6-207.json"
AMD = f"{RESULTS}/cpu-amd-epyc-25-17.json"
BEST = f"{RESULTS}/best_protocol.json"
PROMPTS = f"{RESULTS}/prompts.json"
DOORS = f"{RESULTS}/doors.json"
MEMORY = f"{RESULTS}/memory_over_time.json"
H100 = f"{RESULTS}/nvidia-h100-80gb-hbm3"
HEADLINE = f"{H100}/2026-11-27T1047Z-fad5a43-first.json"
H100_TRAINING = f"{H100}/2026-11-27T1055Z-fad5a43-second.json"
H100_CASES = f"{H100}/2026-11-27T1101Z-fad5a43-third.json"
SCANS = f"{H100}/2026-11-27-versions-of-the-scan.json"


@dataclass(frozen=True)
class Number:
    """A number of the prose."""

    file: str
    """From the root of the repository; JSON."""
    value: Callable[[Any], float]
    """Finds it in the file's content."""
    text: Callable[[float], str]
    """How it is written."""


def decimals(count: int, unit: str = "") -> Callable[[float], str]:
    """1.23, with a unit behind a space if there is one."""
    return lambda value: f"{value:.{count}f} {unit}".rstrip()


def percent(value: float) -> str:
    """0.123 as 12 %."""
    return f"{100 * value:.0f} %"


def share(value: float) -> str:
    """0.02 as 1/50."""
    return f"1/{1 / value:.0f}"


def times(value: float) -> str:
    """0.02 as 50 times."""
    return f"{1 / value:.0f} times"


def bench(results: Any, name: str) -> Any:
    """One benchmark of a file of `make bench`, by its name."""
    return next(entry for entry in results["benchmarks"] if entry["name"] == name)


def ratio(results: Any, name: str, rival: str) -> float:
    """Our time over a rival's."""
    return bench(results, name)["extra_info"]["ratio_to"][rival]


def gpu(results: Any, part: str, step: str, name: str) -> Any:
    """One figure of a file of `make gpu-check`, by its name."""
    return next(figure for figure in results["parts"][part][step]["figures"] if figure["name"] == name)


def memory_ratio(results: Any, name: str, rival: str) -> float:
    """Our peak memory over a rival's."""
    return bench(results, name)["extra_info"]["peak_mb"] / rival_memory(results, name, rival)


def rival_memory(results: Any, name: str, rival: str) -> float:
    """A rival's peak memory in MB."""
    return bench(results, name)["extra_info"]["rival_peak_mb"][rival]


def sequence(results: Any) -> Any:
    """The figure of propagate_sequence on a GPU."""
    return gpu(results, "third", "cases", "labels through 100 frames of 3600 positions, 10 classes")


def door(results: Any, name: str) -> float:
    """The seconds of one of the README's commands."""
    return results["commands"][name]["seconds"]


def door_per_frame(results: Any, name: str) -> float:
    """The seconds of a command for one frame of its video."""
    return door(results, name) / results["commands"][name]["frames"]


def of_plain(results: Any, name: str, what: str = "us") -> float:
    """Our time (or "peak_mb") over that of the plain form, of a training figure of `make gpu-check`."""
    figure = gpu(results, "second", "training", name)
    return figure["ours"][what] / figure["plain"][what]


def scan(version: str, variant: str, unit: str = "") -> Number:
    """Microseconds a target of a version of the CUDA scan that is not kept."""
    return Number(SCANS, lambda r: gpu(r, "scan", version, f"{variant}, B = 8, k = 5")["us"], decimals(0, unit))


def one_target(results: Any) -> Any:
    """The figure of a call of one target at crop 480, k = 5."""
    return gpu(results, "first", "headline", "headline cuda, B = 1, k = 5")


def balance(results: Any, what: str) -> float:
    """Patches of the busiest of an H100's multiprocessors, for one target at crop 480."""
    case = {"grid": [60, 60], "slots": 8, "region": None, "targets": 1, "multiprocessors": 132}
    return next(entry[what] for entry in results if case.items() <= entry.items())


def held_out_boxes(results: Any) -> Any:
    """Masks made of boxes and the next frame, with weights fitted on the other sequences."""
    return results["box, with the next frame"]["held_out"]


NUMBERS: dict[str, Number] = {
    # design_decisions
    "attention, of plain, H100, first run": Number(
        f"{H100}/2026-11-27T0346Z-e0d7c1e-second.json",
        lambda r: of_plain(r, "attend, localiser at 240 px, 36 samples, bfloat16, forward"),
        decimals(1),
    ),
    "attention, of plain, H100": Number(
        H100_TRAINING,
        lambda r: of_plain(r, "attend, localiser at 240 px, 36 samples, bfloat16, forward"),
        decimals(1, "times"),
    ),
    "balance, stretches": Number("benchmarks/results/cuda_balance.json", lambda r: balance(r, "most"), decimals(0)),
    "balance, whole slots": Number(
        "benchmarks/results/cuda_balance.json", lambda r: balance(r, "whole slots"), decimals(0)
    ),
    "call without autograd, of before": Number(
        "benchmarks/results/cuda_host.json", lambda r: r["comparisons"][1]["ratio"]["whole call"], percent
    ),
    "fused, memory": Number(
        CPU, lambda r: bench(r, "bench_per_frame[480-float32-5]")["extra_info"]["peak_mb"], decimals(0, "MB")
    ),
    "fused, of bare product": Number(
        CPU, lambda r: ratio(r, "bench_per_frame[480-float32-5]", "product, preallocated"), decimals(2)
    ),
    "fused, of materialized, time": Number(
        CPU, lambda r: ratio(r, "bench_per_frame[480-float32-5]", "PyTorch, materialised"), decimals(2)
    ),
    "labels in one call, memory": Number(
        CPU, lambda r: bench(r, "bench_propagate")["extra_info"]["peak_mb"], decimals(1, "MB")
    ),
    "labels in one call, time": Number(
        CPU, lambda r: ratio(r, "bench_propagate", "topk_affinity, then propagate_labels"), decimals(2)
    ),
    "labels in two calls, memory": Number(
        CPU, lambda r: rival_memory(r, "bench_propagate", "topk_affinity, then propagate_labels"), decimals(1, "MB")
    ),
    "losses, memory of plain, H100": Number(
        H100_TRAINING, lambda r: of_plain(r, "TimeCycle's losses at 240 px, 36 samples, tf32", "peak_mb"), decimals(2)
    ),
    "losses, of plain, H100": Number(
        H100_TRAINING, lambda r: of_plain(r, "TimeCycle's losses at 240 px, 36 samples, tf32"), decimals(1, "times")
    ),
    "losses, of published order": Number(
        CPU, lambda r: ratio(r, "bench_losses[480]", "the published order, plain forms"), decimals(2)
    ),
    "materialized, memory": Number(
        CPU, lambda r: rival_memory(r, "bench_per_frame[480-float32-5]", "PyTorch, materialised"), decimals(0, "MB")
    ),
    "neighborhood, of everywhere": Number(
        CPU, lambda r: ratio(r, "bench_region", "the same without a region"), decimals(2)
    ),
    "scan 5, base": scan("version 5", "base"),
    "scan 5, early": scan("variants of version 5", "early"),
    "scan 5, hint": scan("variants of version 5", "hint"),
    "scan 5, room4": scan("variants of version 5", "room4"),
    "scan 5, store1": scan("variants of version 5", "store1"),
    "scan, first version": Number(
        f"{H100}/2026-11-27T0330Z-e0d7c1e-first.json",
        lambda r: gpu(r, "first", "headline", "headline cuda, B = 16, k = 5")["kernel_share_of_mm"],
        percent,
    ),
    "scan, lists apart": Number(
        f"{H100}/2026-11-27T0534Z-f625744-first.json",
        lambda r: gpu(r, "first", "headline", "headline cuda, B = 16, k = 5")["kernel_share_of_mm"],
        percent,
    ),
    "sequence, frame by frame": Number(
        H100_CASES, lambda r: sequence(r)["frame by frame"]["us"] / 1000, decimals(1, "ms")
    ),
    "sequence, one launch": Number(H100_CASES, lambda r: sequence(r)["us"] / 1000, decimals(1, "ms")),
    # guides/track
    "box to mask, IoU": Number(PROMPTS, lambda r: held_out_boxes(r)["mean"], decimals(2)),
    "box to mask, worst IoU": Number(PROMPTS, lambda r: min(held_out_boxes(r)["iou"].values()), decimals(2)),
    "confidence, frames": Number(BEST, lambda r: r["confidence"]["frames"], decimals(0)),
    "confidence, rank correlation": Number(BEST, lambda r: r["confidence"]["spearman"], decimals(2)),
    "crw beside best, time": Number(BEST, lambda r: r["seconds"]["cpu"]["crw"] / r["seconds"]["cpu"]["best"], share),
    "three points to mask, IoU": Number(PROMPTS, lambda r: r["3 points and 2 of the background"]["mean"], decimals(2)),
    # kernels
    "cuda scan, k = 5, of mm": Number(
        HEADLINE, lambda r: gpu(r, "first", "headline", "headline cuda, B = 16, k = 5")["kernel_share_of_mm"], percent
    ),
    "cuda scan, k = 20, of mm": Number(
        HEADLINE, lambda r: gpu(r, "first", "headline", "headline cuda, B = 16, k = 20")["kernel_share_of_mm"], percent
    ),
    "gradient over all, of forward": Number(
        CPU, lambda r: ratio(r, "bench_backward[per frame, all-float32]", "forward"), decimals(1, "times")
    ),
    "gradient over top k, of forward": Number(
        CPU, lambda r: ratio(r, "bench_backward[joint, kept-float32]", "forward"), decimals(2)
    ),
    "int8 search, of float": Number(
        CPU, lambda r: ratio(r, "bench_joint[float32-10]", "ours, products in float"), decimals(2)
    ),
    # csrc/cuda/NOTES
    "call, below the dispatcher": Number(
        "benchmarks/results/cuda_host.json", lambda r: r["comparisons"][0]["ratio"]["below the dispatcher"], percent
    ),
    "cuda, call of one target": Number(HEADLINE, lambda r: one_target(r)["call_us"], decimals(0, "us")),
    "cuda, call of one target, GPU": Number(
        HEADLINE, lambda r: one_target(r)["call_without_the_host_us"], decimals(0, "us")
    ),
    "merges of a patch, k = 5": Number(f"{RESULTS}/cuda_selection.json", lambda r: r["5"]["rounds"], decimals(2)),
    "merges of a patch, k = 10": Number(f"{RESULTS}/cuda_selection.json", lambda r: r["10"]["rounds"], decimals(2)),
    "merges of a patch, k = 20": Number(f"{RESULTS}/cuda_selection.json", lambda r: r["20"]["rounds"], decimals(2)),
    "scan 5, products alone": scan("version 5", "notake", "us"),
    "scan 5, products alone, hot": scan("version 5", "notake_hot", "us"),
    # README
    "crw video, time": Number(CPU, lambda r: ratio(r, "bench_video[crw]", "CRW's functions"), times),
    "crw, memory over time": Number(MEMORY, lambda r: r["ours_of_theirs"]["peak"], share),
    "demo, seconds": Number(DOORS, lambda r: door(r, "demo"), decimals(0, "s")),
    "evaluate, seconds a frame": Number(DOORS, lambda r: door_per_frame(r, "evaluate"), decimals(1, "s")),
    "track, seconds a frame": Number(DOORS, lambda r: door_per_frame(r, "track"), decimals(1, "s")),
    "train, seconds": Number(DOORS, lambda r: door(r, "train"), decimals(0, "s")),
}

SETTINGS = (
    r"\b\d+\.\d+\.\d+\b",  # versions
    # Settings of published protocols and versions of programs: phrases with numbers that nobody measured here.
    r"([Ss]ections?|[Ee]quations?|[Ee]q\.|[Tt]ables?|[Ff]igures?|version) \d+(\.\d+)+",
    r"95 % (bootstrap )?intervals?",
    r"(Python|PyTorch|torch|Triton|CUDA|nvcc|Apache-|CFF) ?v?\d+(\.\d+)+( to \d\.\d+)?",
)

LINK = re.compile(r'\[([^\]]+)\]\(([^)\s]+\.json) "([^"]+)"\)')
CODE = re.compile(r"^(```|~~~).*?^\1|(?<=\n\n)(?: {4,}[^\n]+\n?)+|`[^`]+`", re.MULTILINE | re.DOTALL)
GENERATED = re.compile(r"<!-- generated: .*?<!-- end of generated -->", re.DOTALL)
HIDDEN = re.compile(
    r"\A---\n.*?^---$|<!--.*?-->|\]\([^)]*\)|https?://\S+|\$\$.*?\$\$|\$[^$\n]+\$", re.MULTILINE | re.DOTALL
)
UNITS = "s|ms|µs|seconds?|minutes?|hours?|[kKMGT]i?B|%|per cent|percent|times|×|points?|[GT]?FLOPS|[GT]B/s|fps|W"
MEASURED = re.compile(
    r"""(?<![\w.-]) \d+ (?: ,\d{3} )*     # a number that is no part of a word, such as DAVIS-2017
    (?: \.\d+                           # with decimals
      | \ ?(?: UNITS )(?!\w)            # with a unit
      | x(?!\w) | \ x\b(?!\ \d)          # 3x, but not 480 x 854
    )""".replace("UNITS", UNITS.replace(" ", r"\ ")),
    re.VERBOSE,
)


def pages() -> Iterator[Path]:
    """The Markdown files that git tracks or would track."""
    skipped = {".venv", "build", "out", "node_modules", ".git"}
    for path in sorted(ROOT.rglob("*.md")):
        if not skipped.intersection(path.relative_to(ROOT).parts):
            yield path


def value_of(name: str) -> str:
    """The text of a number."""
    number = NUMBERS[name]
    return number.text(number.value(_content(ROOT / number.file)))


@cache
def _content(file: Path) -> Any:
    """A results file, read once for all the numbers from it."""
    return json.loads(file.read_text())


def missing(name: str) -> str | None:
    """Why a number has no value, if it has none."""
    if name not in NUMBERS:
        return f"{name!r} is not in NUMBERS"
    file = NUMBERS[name].file
    return None if (ROOT / file).is_file() else f"{name!r} is of {file}, which does not exist"


def written(text: str, path: Path) -> str:
    """A page with the files' values in its links."""

    def current(link: re.Match[str]) -> str:
        if missing(link[3]):
            return link[0]
        file = os.path.relpath(ROOT / NUMBERS[link[3]].file, path.parent)
        return f'[{value_of(link[3])}]({file} "{link[3]}")'

    return LINK.sub(current, text)


def unsourced(text: str) -> list[str]:
    """The numbers of a page that look measured and name no file."""

    def blank(found: re.Match[str]) -> str:
        return re.sub(r"[^\n]", " ", found[0])

    for pattern in (GENERATED, LINK, HIDDEN, CODE, *map(re.compile, SETTINGS)):
        text = pattern.sub(blank, text)
    return [f"line {text.count(chr(10), 0, found.start()) + 1}: {found[0]}" for found in MEASURED.finditer(text)]


def problems() -> list[str]:
    """What is wrong in any page, a line each."""
    found = []
    for path in pages():
        name, text = path.relative_to(ROOT), path.read_text()
        for old, new in zip(LINK.finditer(text), LINK.finditer(written(text, path)), strict=True):
            if reason := missing(old[3]):
                found.append(f"{name}: {reason}")
            elif old[0] != new[0]:
                found.append(f"{name}: {old[0]}; expected {new[0]}")
        found += [f"{name}, {place}: no results file is named" for place in unsourced(text)]
    return found


def rewrite(change: Callable[[str, Path], str]) -> None:
    """Change the text of every page, and print which differ from before."""
    for path in pages():
        if (text := path.read_text()) != (new := change(text, path)):
            path.write_text(new)
            print(f"wrote {path.relative_to(ROOT)}")


def main(words: list[str]) -> int:
    """Write the numbers if asked to, and print what is wrong."""
    if words == ["--write"]:
        rewrite(written)
    found = problems()
    print("\n".join(found) or "every number comes from a results file")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
