"""Results of make bench: stored under the chip's name and drawn; the tables of docs/performance.md are made from them.

    python -m benchmarks.report RESULTS.json     # written by pytest benchmarks --benchmark-json

`python -m docs.generated --write` then writes the tables.
"""

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from docs.markdown import table

ROOT = Path(__file__).parents[1]
FOLDER = ROOT / "benchmarks" / "results"
NO_BREAK = "\N{NO-BREAK SPACE}"
NAMES = {
    "bench_video[crw]": "`crw`, a video of 4 frames, 480 x 854, features to masks",
    "bench_video[dino]": "`dino`, a video of 6 frames, 480 x 854, features to masks",
    "bench_region": "`crw`'s affinity, 480 x 854, 21 frames, circle 12, top-10",
    "bench_dino": "`dino`'s affinity, 480 x 854, 8 frames, square 12, top-5",
    "bench_per_frame[480-float32-5]": "`timecycle`'s affinity, crop 480, 8 frames, top-5 of each, float32",
    "bench_per_frame[480-float32-20]": "`timecycle`'s affinity, crop 480, 8 frames, top-20 of each, float32",
    "bench_per_frame[480-bfloat16-5]": "`timecycle`'s affinity, crop 480, 8 frames, top-5 of each, bfloat16",
    "bench_per_frame[480-bfloat16-20]": "`timecycle`'s affinity, crop 480, 8 frames, top-20 of each, bfloat16",
    "bench_joint[float32-10]": "crop 480, 8 frames, top-10 of all, float32",
    "bench_joint[10]": "crop 480, 8 frames, top-10 of all, float32",  # as it was called until November 24
    "bench_joint[float32-20]": "crop 480, 8 frames, top-20 of all, float32",
    "bench_joint[20]": "crop 480, 8 frames, top-20 of all, float32",
    "bench_joint[bfloat16-10]": "crop 480, 8 frames, top-10 of all, bfloat16",
    "bench_joint_smooth": "crop 480, 8 frames, top-10 of all, features that vary smoothly",
    "bench_propagate": "labels, crop 480, 8 frames, top-20 of each",
    "bench_backward[per frame, all-float32]": "gradient, crop 480, softmax over all, float32",
    "bench_backward[joint, kept-float32]": "gradient, crop 480, softmax over the kept, float32",
    "bench_losses[240]": "TimeCycle's losses and their gradients from features, 2 samples, 240 px",
    "bench_losses[480]": "TimeCycle's losses and their gradients from features, 2 samples, 480 px",
    "bench_step": "TimeCycle's whole training step, 2 samples, 240 px",
    "bench_losses_of_large_frames": "TimeCycle's losses and their gradients from features, 2 samples, 960 px",
    "bench_full_hd": "affinity, 1920 x 1080, 8 frames, top-5 of each, bfloat16",
}
"""What a benchmark's work is called, in the order of the tables."""
CRW = "CRW's functions"
OTHERS = {
    CRW: CRW,
    "DINO's functions": "DINO's functions",
    "PyTorch, materialised": "PyTorch, affinity written out",
    "FAISS IndexFlatIP (no softmax)": "FAISS IndexFlatIP, without the softmax",
    "the published order, plain forms": "PyTorch, the published program's order",
}
"""Rivals that do the same work."""
PRODUCTS = {
    "product, our tiles, nothing written": "products alone, results dropped",
    "product, preallocated": "`torch.mm` into memory that is there",
    "product": "`q @ k.T`",
}
"""Matrix products alone, which do a part of the work."""
OWN = {
    "the same without a region": "without the neighborhood",
    "topk_affinity, then propagate_labels": "two calls instead of one",
    "ours, products in float": "products in float32 instead of bytes",
    "forward": "the forward call",
}
"""Other forms of our own."""


class Measured(NamedTuple):
    """One benchmark on one machine."""

    work: str
    machine: str
    seconds: float
    info: dict[str, Any]


def machine(results: dict[str, Any]) -> str:
    """A short name of the machine."""
    cpu = results["machine_info"]["cpu"].get("brand_raw") or "unknown CPU"
    return re.sub(r"\(R\)| Processor", "", cpu)


def files() -> dict[str, dict[str, Any]]:
    """The results files of CPUs by name, the newest first."""
    found = {path.name: json.loads(path.read_text()) for path in FOLDER.glob("cpu-*.json")}
    return dict(sorted(found.items(), key=lambda item: item[1]["datetime"], reverse=True))


def measured() -> list[Measured]:
    """The benchmarks of all machines, in the order of NAMES."""
    every = [
        Measured(NAMES[one["name"]], machine(results), one["stats"]["median"], one["extra_info"])
        for results in files().values()
        for one in results["benchmarks"]
        if one["name"] in NAMES
    ]
    order = list(dict.fromkeys(NAMES.values()))
    return sorted(every, key=lambda one: order.index(one.work))


def duration(seconds: float) -> str:
    """A time in s, ms or µs."""
    for unit, size in (("s", 1.0), ("ms", 1e-3), ("µs", 1e-6)):
        if seconds >= size or unit == "µs":
            break
    return f"{number(seconds / size)}{NO_BREAK}{unit}"


def number(value: float) -> str:
    """Two digits or more."""
    return f"{value:.0f}" if value >= 20 else f"{value:.1f}" if value >= 1 else f"{value:.2f}"


def memory(megabytes: float | None) -> str:
    """Memory in MB or GB."""
    if megabytes is None:
        return ""
    value, unit = (f"{megabytes / 1000:.1f}", "GB") if megabytes >= 1000 else (f"{megabytes:.0f}", "MB")
    return f"{value}{NO_BREAK}{unit}"


def cpus() -> str:
    """The machines and what was run on them."""
    rows = []
    for name, results in files().items():
        about = results["machine_info"]["timecycle"]
        versions = f"PyTorch {about['torch']}, Python {about['python']}"
        chip = f"{machine(results)}, {about['threads']} threads, {about['cpu capability']}"
        rows.append([chip, results["datetime"][:10], about["commit"], versions, f"`benchmarks/results/{name}`"])
    return table(["machine", "date", "commit", "versions", "file"], rows)


def compared(kinds: dict[str, str]) -> Iterator[tuple[Measured, str]]:
    """Every benchmark with each of its rivals of the given kinds."""
    for one in measured():
        yield from ((one, rival) for rival in kinds if rival in one.info["ratio_to"])


def cpu_others() -> str:
    """The same work here and by others, a row for each rival; memory is that on the newest machine."""
    machines = [machine(results) for results in files().values()]
    rows: dict[tuple[str, str], list[str]] = {}
    for one, rival in compared(OTHERS):
        info = one.info
        memories = memory(info["peak_mb"]), memory(info["rival_peak_mb"][rival])
        row = rows.setdefault((one.work, OTHERS[rival]), [*([""] * len(machines)), *memories])
        times = f"{duration(one.seconds)} beside {duration(info['rival_seconds'][rival])}"
        row[machines.index(one.machine)] = f"**{number(1 / info['ratio_to'][rival])}**: {times}"
    head = ["work", "beside", *(f"times as fast, {name}" for name in machines), "memory here", "memory there"]
    return table(head, [[*names, *row] for names, row in rows.items()])


def cpu_products() -> str:
    """Our time beside that of the matrix product alone."""
    rows = []
    for one in measured():
        ratios = one.info["ratio_to"]
        if set(PRODUCTS) <= set(ratios):
            shares = [f"{100 / ratios[rival]:.0f}{NO_BREAK}%" for rival in PRODUCTS]
            rows.append([one.work, one.machine, duration(one.seconds), *shares])
    return table(["work", "machine", "here", *PRODUCTS.values()], rows)


def cpu_own() -> str:
    """Our time beside other forms of our own."""
    rows = [
        [one.work, OWN[rival], one.machine, duration(one.seconds), duration(one.info["rival_seconds"][rival])]
        for one, rival in compared(OWN)
    ]
    return table(["work", "beside", "machine", "time", "time of the other"], rows)


def cpu_alone() -> str:
    """Large work that no rival fits into memory for."""
    rows = [
        [one.work, one.machine, duration(one.seconds), memory(one.info["peak_mb"])]
        for one in measured()
        if not one.info["ratio_to"]
    ]
    return table(["work", "machine", "time", "memory"], rows)


def memory_over_time() -> str:
    """Memory by frame of one video under crw, here and by CRW's functions."""
    found = json.loads((FOLDER / "memory_over_time.json").read_text())
    peaks = [found["methods"][method]["peak_mb"] for method in ("ours", "theirs")]
    last = len(peaks[0])
    shown = [frame for frame in (2, 5, 10, 15, 20, 30, 40) if frame < last] + [last]
    rows = [[f"until frame {frame}", *(memory(max(peak[:frame])) for peak in peaks)] for frame in shown]
    height, width = found["size"]
    return (
        f"{table(['largest memory', 'here', OTHERS[CRW]], rows)}\n\n`crw`, {last} frames of {height} x {width}, "
        f"{found['features'][1]} channels; {number(1 / found['ours_of_theirs']['clock'])} times as fast by the clock, "
        f"{100 * found['equal_pixels']:.2f} % of the masks' pixels equal. {found['machine']['threads']} threads, "
        f"{found['machine']['cpu']}; commit {found['commit'][:7]}, from `benchmarks/results/memory_over_time.json`."
    )


def tracking() -> str:
    """The time of `timecycle track` by stage."""
    found = json.loads((FOLDER / "track_speed.json").read_text())
    rows = [[stage, duration(seconds)] for stage, seconds in found["seconds"].items()]
    about = f"{found['machine']['threads']} threads, {found['machine']['cpu']}, {found['frames']} frames"
    return (
        f"{table(['stage', 'time of a frame'], rows)}\n\n{found['frames_per_second']} frames per second; {about}; "
        f"commit {found['commit'][:7]}, from `benchmarks/results/track_speed.json`."
    )


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of our time / rival's time; below 1 ours is faster."""
    import matplotlib.pyplot as plt

    plt.rcParams |= {"svg.hashsalt": "timecycle", "svg.fonttype": "none"}  # a reproducible file, text as text
    words = OTHERS | PRODUCTS | OWN
    ratios = {
        f"{NAMES[benchmark['name']]}  vs  {words[rival]}".replace("`", ""): ratio
        for benchmark in results["benchmarks"]
        if benchmark["name"] in NAMES
        for rival, ratio in benchmark["extra_info"]["ratio_to"].items()
    }
    figure, axes = plt.subplots(figsize=(10, 0.32 * len(ratios) + 1))
    axes.barh(list(ratios), list(ratios.values()), color=["C0" if v < 1 else "C3" for v in ratios.values()])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("our time / time of the rival")
    axes.margins(y=0.01)
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def results_path(results: dict[str, Any]) -> Path:
    """The results file of this chip."""
    cpu = results["machine_info"]["cpu"]
    chip = [cpu.get("brand_raw") or "cpu", cpu.get("family"), cpu.get("model")]
    name = "-".join(re.findall(r"[a-z0-9]+", " ".join(str(part) for part in chip if part).lower().replace("(r)", "")))
    return FOLDER / f"cpu-{name}.json"


def main() -> None:
    """Store the results under the chip's name, and draw them."""
    results = json.loads(Path(sys.argv[1]).read_text())
    for benchmark in results["benchmarks"]:
        benchmark["stats"].pop("data", None)  # single rounds would only fill the repository
    path = results_path(results)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    plot(results, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
