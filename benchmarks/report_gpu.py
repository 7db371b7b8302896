"""The tables of docs/performance.md from results of make gpu-check: of each piece of work the newest result."""

import json
from collections.abc import Iterator
from typing import Any

from benchmarks.report import FOLDER, NO_BREAK, duration, memory, number
from docs.markdown import table

GPU = FOLDER / "nvidia-h100-80gb-hbm3"
Figure = dict[str, Any]


def runs() -> list[dict[str, Any]]:
    """The files of make gpu-check and of runs by hand, the oldest first; not those of programs that are not kept."""
    found = [json.loads(path.read_text()) for path in GPU.glob("*.json")]
    return sorted((content for content in found if "commit" in content), key=lambda content: content["date"])


def newest() -> dict[str, Figure]:
    """By name, the newest figure without an error, with the commit of its run."""
    found: dict[str, Figure] = {}
    for content in runs():
        for figure in figures_of(content):
            found[figure["name"].replace("localiser", "localizer")] = figure | {"of": content["commit"]}
    return found


def machine() -> str:
    """The machine and what was run on it, of the newest run."""
    content = runs()[-1]
    sizes = [str(content["multiprocessors"]), *(memory(content[key]) for key in ("memory_mb", "l2_mb"))]
    clocks = [content["clocks at the start"][f"clocks.max.{kind}"] for kind in ("sm", "mem")]
    versions = content["versions"]
    rows = [
        ["GPU", content["gpu"]],
        ["multiprocessors, memory, L2", ", ".join(sizes)],
        ["largest clock of multiprocessors, of memory", ", ".join(clocks)],
        ["driver, CUDA", f"{content['driver']}, {versions['cuda']}"],
        ["PyTorch, Triton, Python", ", ".join(versions[name] for name in ("torch", "triton", "python"))],
    ]
    rates = next(figure for figure in newest().values() if "dense_tflops" in figure)
    dense = ", ".join(f"{kind} {rate:.0f}" for kind, rate in rates["dense_tflops"].items())
    rows.append(["dense products measured, TFLOP/s", dense])
    rows.append(["copy measured", f"{rates['copy_tbs']:.2f} TB/s"])
    dates = {f"{content['commit']} ({content['date'][:10]})": None for content in runs()}
    rows.append(["commits that the tables name", ", ".join(dates)])
    return table(["", "newest run"], rows)


def figures_of(content: dict[str, Any]) -> Iterator[Figure]:
    """The figures of a run that have a name and no error."""
    for steps in content["parts"].values():
        for step in steps.values():
            yield from (figure for figure in step["figures"] if "name" in figure and "error" not in figure)


def headline() -> str:
    """The scan alone and the whole call beside torch.mm and PyTorch's materialized form."""
    found = newest()
    rows = []
    for name, figure in found.items():
        if not name.startswith("headline") or "kernel_us" not in figure:
            continue
        backend, case = name.removeprefix("headline ").split(", ", 1)
        eager = next(f["eager_us"] for other, f in found.items() if "eager_us" in f and other.endswith(case))
        scan, product, call = (figure[f"{what}_us"] for what in ("kernel", "mm", "call"))
        share = f"{100 * figure['kernel_share_of_mm']:.0f}{NO_BREAK}%"
        times = [duration(1e-6 * us) for us in (scan, product)]
        others = [duration(1e-6 * us) for us in (call, eager)]
        rows.append([f"{backend}, {case}", *times, share, *others, number(eager / call), figure["of"]])
    head = ["backend, targets B and k", "scan alone", "`torch.mm` alone", "scan's share of its rate", "whole call"]
    return table([*head, "PyTorch, affinity written out", "times as fast", "commit"], rows)


VERSIONS = {
    "e0d7c1e": "no branches in the epilogue",
    "f625744": "lists in warps of their own, fewer instructions",
    "fad5a43": "sorting networks, merges of eight",
}
"""What changed in the CUDA scan, by the commit that was measured."""


def versions() -> str:
    """The CUDA scan's time, and its share of the rate of torch.mm, by version."""
    settings = [f"B = {targets}, k = {k}" for targets in (16, 1) for k in (5, 20)]
    rows = []
    for content in runs():
        found = {figure["name"]: figure for figure in figures_of(content)}
        cells = [found.get(f"headline cuda, {setting}") for setting in settings]
        if all(cells) and content["commit"] in VERSIONS:
            times = [f"{cell['kernel_us']:.0f} µs ({100 * cell['kernel_share_of_mm']:.0f} %)" for cell in cells if cell]
            rows.append([VERSIONS[content["commit"]], content["commit"], *times])
    return table(["version", "commit", *settings], rows)


def cases() -> str:
    """Every other case of the affinity, with its share of the rate of dense products."""
    rows = []
    for case in newest().values():
        if "share_of_dense" not in case:
            continue
        share = f"{100 * case['share_of_dense']:.0f}{NO_BREAK}%" if case["share_of_dense"] > 0.01 else ""
        ratios = case["ratio_to"]
        speed = number(ratios["eager"]) if "eager" in ratios else ""
        speed += f" ({number(ratios['compiled'])})" if "compiled" in ratios else ""
        used, matrix = case["peak_mb"], case["matrix_mb"]
        held = f"{memory(used)}, {100 * used / matrix:.1f}{NO_BREAK}% of {memory(matrix)}" if used else ""
        what = [case["work"], case["backend"], duration(1e-6 * case["us"])]
        rows.append([*what, share, speed, str(case["targets"]), held, case["of"]])
    head = ["work", "backend", "a target frame", "of the dense rate", "times as fast as PyTorch (compiled)"]
    return table([*head, "targets of a call", "its memory, of the affinity matrix", "commit"], sorted(rows))


def training() -> str:
    """Training's operators, losses and step beside PyTorch's plain forms."""
    rows = []
    for name, figure in newest().items():
        if "plain" in figure:
            ours, plain = figure["ours"], figure["plain"]
            times = [duration(1e-6 * form["us"]) for form in (ours, plain)]
            speed = number(plain["us"] / ours["us"])
            rows.append([name, *times, speed, *(memory(form["peak_mb"]) for form in (ours, plain)), figure["of"]])
    head = ["work", "here", "PyTorch, plain form", "times as fast", "memory here", "memory there", "commit"]
    return table(head, rows)


def videos() -> str:
    """Labels through a video in one call, and evaluations from files to masks."""
    rows = []
    for name, figure in newest().items():
        if "frame by frame" in figure:
            looped = duration(1e-6 * figure["frame by frame"]["us"])
            rows.append([name, f"{duration(1e-6 * figure['us'])}; frame by frame {looped}", figure["of"]])
        elif rate := figure.get("images_per_second") or figure.get("pictures_a_second"):  # the older name
            stages = ", ".join(f"{stage} {duration(seconds)}" for stage, seconds in figure["seconds"].items())
            rows.append([name, f"{rate:.1f} frames per second ({stages})", figure["of"]])
    return table(["work", "time", "commit"], rows)


def slower() -> str:
    """Where PyTorch's plain form is faster, on the GPU."""
    rows = []
    for name, figure in newest().items():
        if "plain" in figure and figure["plain"]["us"] < figure["ours"]["us"]:
            ours, theirs = figure["ours"]["us"], figure["plain"]["us"]
        elif "share_of_dense" in figure and figure["ratio_to"].get("eager", 1) < 1:
            ours, theirs = figure["us"], figure["rivals"]["eager"]["us"]
        else:
            continue
        rows.append([name, duration(1e-6 * ours), duration(1e-6 * theirs), number(ours / theirs), figure["of"]])
    return table(["work", "here", "PyTorch", "times slower", "commit"], rows)
