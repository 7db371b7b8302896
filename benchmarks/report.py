"""Write the README's table and a plot from stored results: python -m benchmarks.report RESULTS.json."""

import json
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- benchmarks: written by benchmarks/report.py -->", "<!-- end of benchmarks -->"
COLUMNS = {
    "product": "of `q @ k.T`",
    "product, preallocated": "of it, preallocated",
    "product, our tiles, nothing written": "of our bare tiles",
    "PyTorch, materialised": "of PyTorch, materialised",
}
HEADINGS = ("work, one target frame", "time", "memory", *COLUMNS.values(), "of others")
NAMES = {
    "bench_per_frame[480-float32-5]": "crop 480, 8 frames, top-5 of each, float32",
    "bench_per_frame[480-float32-20]": "crop 480, 8 frames, top-20 of each, float32",
    "bench_per_frame[480-bfloat16-5]": "crop 480, 8 frames, top-5 of each, bfloat16",
    "bench_per_frame[480-bfloat16-20]": "crop 480, 8 frames, top-20 of each, bfloat16",
    "bench_joint[float32-10]": "crop 480, 8 frames, top-10 of all, float32",
    "bench_joint[float32-20]": "crop 480, 8 frames, top-20 of all, float32",
    "bench_joint[bfloat16-10]": "crop 480, 8 frames, top-10 of all, bfloat16",
    "bench_joint_smooth": "the same, float32, features that vary smoothly",
    "bench_propagate": "labels, crop 480, 8 frames, top-20 of each, float32",
    "bench_region": "CRW at 480 x 854, 21 frames, circle 12, float32",
    "bench_dino": "DINO at 480 x 854, 8 frames, square 12, float32",
    "bench_video[crw]": "CRW at 480 x 854, a video of 4 frames, features to masks",
    "bench_video[dino]": "DINO S/8 at 480 x 854, a video of 6 frames, features to masks",
    "bench_full_hd": "1920 x 1080, 8 frames, top-5 of each, bfloat16",
    "bench_backward[per frame, all-float32]": "gradient, crop 480, softmax over all, float32",
    "bench_backward[joint, kept-float32]": "gradient, crop 480, softmax over the kept, float32",
    "bench_losses[240]": "TimeCycle's losses from features and their gradients, 2 samples, 240 px",
    "bench_losses[480]": "the same, 480 px",
    "bench_losses_of_large_frames": "the same, 960 px",
    "bench_step": "TimeCycle's whole step, encoder and all, 2 samples, 240 px",
}


def rows(results: dict[str, Any]) -> list[tuple[str, ...]]:
    """A row per case: our time and memory, and our time as a share of each rival's."""
    found = []
    for benchmark in results["benchmarks"]:
        if benchmark["name"] not in NAMES:
            continue
        info, own = benchmark["extra_info"], benchmark["stats"]["median"]
        cells = {rival: f"{ratio:.2f}" for rival, ratio in info["ratio_to"].items()}
        for rival in cells:
            if info["rival_peak_mb"][rival] > 100:
                cells[rival] += f" ({info['rival_peak_mb'][rival]:.0f} MB)"
        others = "; ".join(f"{rival}: {cell}" for rival, cell in cells.items() if rival not in COLUMNS)
        shares = [cells.get(rival, "") for rival in COLUMNS]
        found.append((NAMES[benchmark["name"]], f"{own:.3f} s", f"{info['peak_mb']:.0f} MB", *shares, others))
    return found


def table(results: dict[str, Any], source: str) -> str:
    """The rows as Markdown, with the machine and versions."""
    lines = ["| " + " | ".join(HEADINGS) + " |", "|---" * len(HEADINGS) + "|"]
    lines += ["| " + " | ".join(row) + " |" for row in rows(results)]
    machine = results["machine_info"]
    about = machine["timecycle"]
    lines += [
        "",
        f"Medians on {machine['cpu'].get('brand_raw', machine['processor'])} with {about['threads']} threads "
        f"({about['cpu capability']}), torch {about['torch']}, commit {about['commit']}, from `{source}`: our time as "
        "a share of each rival's, timed in turn with it, and memory beyond what was held before the call (a rival's "
        "where it is more than 100 MB). On a shared machine only the ratios count.",
    ]
    return "\n".join(lines)


def plot(results: dict[str, Any], path: Path) -> None:
    """Bars of our time / rival's time; below 1 ours is faster."""
    import matplotlib.pyplot as plt

    plt.rcParams["svg.hashsalt"] = "timecycle"  # makes the file reproducible

    ratios = {
        f"{NAMES[benchmark['name']]}  vs  {rival}": ratio
        for benchmark in results["benchmarks"]
        if benchmark["name"] in NAMES
        for rival, ratio in benchmark["extra_info"]["ratio_to"].items()
    }
    figure, axes = plt.subplots(figsize=(10, 0.32 * len(ratios) + 1))
    axes.barh(list(ratios), list(ratios.values()), color=["C0" if v < 1 else "C3" for v in ratios.values()])
    axes.axvline(1.0, color="black", linewidth=1)
    axes.set_xscale("log")
    axes.set_xlabel("our time / time of the rival")
    axes.invert_yaxis()
    axes.tick_params(axis="y", labelsize=7)
    figure.tight_layout()
    figure.savefig(path, metadata={"Date": None})


def results_path(results: dict[str, Any]) -> Path:
    """The results file of this chip."""
    cpu = results["machine_info"]["cpu"]
    chip = [cpu.get("brand_raw") or "cpu", cpu.get("family"), cpu.get("model")]
    name = "-".join(re.findall(r"[a-z0-9]+", " ".join(str(part) for part in chip if part).lower().replace("(r)", "")))
    return ROOT / "benchmarks" / "results" / f"cpu-{name}.json"


def splice(path: Path, begin: str, text: str, end: str) -> None:
    """Replace the text between two markers in a Markdown file."""
    before, rest = path.read_text().split(begin)
    path.write_text(f"{before}{begin}\n\n{text}\n\n{end}{rest.split(end)[1]}")


def main() -> None:
    """Store the results under the chip's name, and rewrite the README's table and the plot."""
    results = json.loads(Path(sys.argv[1]).read_text())
    for benchmark in results["benchmarks"]:
        benchmark["stats"].pop("data", None)  # single rounds would only fill the repository
    path = results_path(results)
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(results, indent=1) + "\n")
    named = path.relative_to(ROOT)
    written = f"{table(results, str(named))} As a picture: `{named.with_suffix('.svg')}`."
    splice(ROOT / "README.md", BEGIN, written, END)
    plot(results, path.with_suffix(".svg"))


if __name__ == "__main__":
    main()
