"""The tables of docs/backends.md, from the lists of backends, timecycle/ops/speeds.json and benchmarks/results."""

import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch

from docs.markdown import table
from docs.numbers import AMD, CPU, H100, ROOT
from docs.pictures.kernels import constant
from timecycle import ops
from timecycle.ops import backends, speeds
from timecycle.ops.checks import DTYPES
from timecycle.ops.selection import MOST_KEPT

PASSES = ("", "_backward")
NAMES = ("cuda", "triton", "cpu", "reference")
"""The tests register others, which force parts of a kernel."""


def order() -> str:
    """The backends of each operator and of its gradient, in the order they are tried."""
    found: dict[str, list[str]] = {}
    for state in ops.backends():  # type: ignore[operator]  # a module that can be called
        if state.backend in NAMES:
            found.setdefault(state.operator, []).append(f"`{state.backend}`")
    # The gradient of affinity_propagate is that of the two operators it joins.
    found["affinity_propagate_backward"] = ["of `topk_affinity` and `propagate_labels`"]
    rows = [
        [f"`{name}`", *(", ".join(found.get(name + which, ["none"])) for which in PASSES)]
        for name in sorted(found)
        if not name.endswith("_backward")
    ]
    return table(["operator", "backends, the first that can run a call does", "its gradient"], rows)


@contextmanager
def _every_backend() -> Iterator[None]:
    """As if all backends were built, on a chip that all support: they then say what they take."""
    module = SimpleNamespace(LARGEST_K=constant("csrc/cuda/topk_affinity.h", "kLargestK"))
    chip = SimpleNamespace(major=9, minor=0, name="")
    topk_affinity = sys.modules["timecycle.ops.topk_affinity"]  # the package has the function of that name
    with ExitStack() as stack:
        for target, name, value in (
            (topk_affinity, "CUDA", module),
            (topk_affinity, "TRITON_MISSING", None),
            (backends, "INTERPRETED", False),
            (torch.cuda, "get_device_properties", lambda _: chip),
        ):
            stack.enter_context(mock.patch.object(target, name, value))
        yield


def limits() -> str:
    """What each backend of topk_affinity and affinity_propagate takes, asked of it."""
    rows = []
    with _every_backend():
        for candidate in (each for each in backends._REGISTERED["topk_affinity"] if each.name in NAMES):
            reference = candidate.name == "reference"
            device = "cpu" if candidate.name in ("cpu", "reference") else "cuda"

            def takes(dtype: torch.dtype, k: int = 1, ties: bool = False, on: Any = (candidate, device)) -> bool:
                features = SimpleNamespace(device=torch.device(on[1]), dtype=dtype, numel=lambda: 1)
                problem = SimpleNamespace(query=features, bank=features, k=k, keep_ties=ties, slots=1, positions=1)
                return on[0].why_not(problem) is None

            dtypes = [dtype for dtype in DTYPES if takes(dtype)]
            largest = max(k for k in (20, 128, MOST_KEPT) if takes(dtypes[0], k))
            rows.append(
                [
                    f"`{candidate.name}`",
                    "any" if reference else {"cpu": "CPU", "cuda": "GPU"}[device],
                    ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes),
                    "any" if largest == MOST_KEPT else str(largest),
                    ", ".join(f'"{ties}"' for ties in ("exact", "all") if takes(dtypes[0], 1, ties == "all")),
                    "" if reference else first_measured(candidate.name),
                ]
            )
    return table(["backend", "device", "features", "largest k", "ties", "first measured"], rows)


def first_measured(backend: str) -> str:
    """Chip and date of each first results file with timings of a backend."""
    found: dict[str, str] = {}
    for path in sorted([ROOT / AMD, ROOT / CPU] if backend == "cpu" else (ROOT / H100).glob("*-first.json")):
        results = json.loads(path.read_text())
        date = results.get("datetime") or results["date"]
        if backend == "cpu" or any(f"headline {backend}," in figure["name"] for figure in _headlines(results)):
            found.setdefault(_chip(results), date[:10])
    return ", ".join(f"{chip} {date}" for chip, date in found.items()) or "never"


def _headlines(results: dict[str, Any]) -> list[dict[str, Any]]:
    return results["parts"]["first"]["headline"]["figures"]


def _chip(results: dict[str, Any]) -> str:
    name = results.get("gpu") or results["machine_info"]["cpu"].get("brand_raw", "CPU")
    return name.replace("NVIDIA ", "").replace("(R)", "")


def measured() -> str:
    """The records that choose between `cuda` and `triton`."""
    rows = [
        [r["chip"], r["work"], f"{r['us']['cuda']:.0f}", f"{r['us']['triton']:.0f}", _ratio(r["us"])]
        for r in sorted(speeds.records(), key=lambda r: (r["chip"], r["region"], r["joint"], r["k"], r["work"]))
    ]
    return table(
        ["compute capability", "work", "`cuda`, us a frame", "`triton`, us a frame", "`cuda` / `triton`"], rows
    )


def _ratio(us: dict[str, float]) -> str:
    return f"{us['cuda'] / us['triton']:.2f}"


def runs() -> str:
    """Every committed run on hardware: when, at which commit, and what passed."""
    rows = []
    for file in (AMD, CPU):
        results = json.loads((ROOT / file).read_text())
        what = f"benchmarks, each checked against the reference first: {len(results['benchmarks'])}"
        rows.append([results["datetime"], _chip(results), results["commit_info"]["id"][:7], what, _link(file, "file")])
    for path in sorted((ROOT / H100).glob("*.json")):
        results = json.loads(path.read_text())
        if "commit" not in results:  # timings of versions that are not kept
            continue
        steps = [step for part in results["parts"].values() for step in part.values()]
        name = path.stem.split(f"{results['commit']}-")[1].replace("-", " ")
        link = _link(f"{H100}/{path.name}", name)
        rows.append([results["date"], _chip(results), results["commit"], _outcome(steps), link])
    cells = [[chip, date[:10], *rest] for date, chip, *rest in sorted(rows)]
    return table(["chip", "date", "commit", "what", "results"], cells)


def _outcome(steps: list[dict[str, Any]]) -> str:
    outcomes = Counter(figure["outcome"] for step in steps for figure in step["figures"] if "outcome" in figure)
    figures = sum(len(step["figures"]) for step in steps) - outcomes.total()
    failed = sum(len(step["failed"]) for step in steps) - outcomes["failed"]
    tests = ", ".join(f"{count} {what}" for what, count in sorted(outcomes.items(), key=lambda item: -item[1]))
    words = [f"tests: {tests}"] if outcomes else []
    words += [f"other checks, and timings: {figures}"] if figures else []
    words += [f"steps that failed or were stopped: {failed}"] if failed else []
    return "; ".join(words)


def _link(file: str, text: str) -> str:
    return f"[{text}](../{file})"


BLOCKS = {"backends: order": order, "backends: limits": limits, "backends: speeds": measured, "backends: runs": runs}
