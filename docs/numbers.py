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
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = "benchmarks/results"
CPU = f"{RESULTS}/cpu-intel-xeon-processor-6-207.json"
AMD = f"{RESULTS}/cpu-amd-epyc-25-17.json"
BEST = f"{RESULTS}/best_protocol.json"
DOORS = f"{RESULTS}/doors.json"
H100 = f"{RESULTS}/nvidia-h100-80gb-hbm3"
HEADLINE = f"{H100}/2026-11-27T1047Z-fad5a43-first.json"


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
    info = bench(results, name)["extra_info"]
    return info["peak_mb"] / info["rival_peak_mb"][rival]


def door(results: Any, name: str) -> float:
    """The seconds of one of the README's commands."""
    return results["commands"][name]["seconds"]


def door_per_frame(results: Any, name: str) -> float:
    """The seconds of a command for one frame of its video."""
    return door(results, name) / results["commands"][name]["frames"]


NUMBERS: dict[str, Number] = {
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
    # README
    "crw video, time": Number(CPU, lambda r: ratio(r, "bench_video[crw]", "CRW's functions"), times),
    "crw video, memory": Number(CPU, lambda r: memory_ratio(r, "bench_video[crw]", "CRW's functions"), share),
    "demo, seconds": Number(DOORS, lambda r: door(r, "demo"), decimals(0, "s")),
    "evaluate, seconds a frame": Number(DOORS, lambda r: door_per_frame(r, "evaluate"), decimals(1, "s")),
    "track, seconds a frame": Number(DOORS, lambda r: door_per_frame(r, "track"), decimals(1, "s")),
    "train, seconds": Number(DOORS, lambda r: door(r, "train"), decimals(0, "s")),
}

SETTINGS = (
    # Settings of published protocols and versions of programs: phrases with numbers that nobody measured here.
    r"([Ss]ections?|[Ee]quations?|[Ee]q\.|[Tt]ables?|[Ff]igures?|version) \d+(\.\d+)+",
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
    return number.text(number.value(json.loads((ROOT / number.file).read_text())))


def written(text: str, path: Path) -> str:
    """A page with the files' values in its links. Raises KeyError for an unknown name."""

    def current(link: re.Match[str]) -> str:
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
        unknown = [link[3] for link in LINK.finditer(text) if link[3] not in NUMBERS]
        found += [f"{name}: {title!r} is not in NUMBERS" for title in unknown]
        if not unknown:
            for old, new in zip(LINK.finditer(text), LINK.finditer(written(text, path)), strict=True):
                if old[0] != new[0]:
                    found.append(f"{name}: {old[0]}; expected {new[0]}")
        found += [f"{name}, {place}: no results file is named" for place in unsourced(text)]
    return found


def main(words: list[str]) -> int:
    """Write the numbers if asked to, and print what is wrong."""
    if words == ["--write"]:
        for path in pages():
            if (text := path.read_text()) != (new := written(text, path)):
                path.write_text(new)
    found = problems()
    print("\n".join(found) or "every number comes from a results file")
    return bool(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
