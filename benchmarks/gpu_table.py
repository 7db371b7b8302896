"""A summary table of a results file of benchmarks/gpu_check.py."""

from typing import Any

LONGEST = 300  # characters of a failure
MOST = 15  # failures of a step; all are in the file


def table(content: dict[str, Any]) -> list[str]:
    """The lines of the summary: outcomes and failures by step, predictions, and a row per case."""
    lines = [f"{content['gpu']}, {content['date']}, commit {content['commit']}"]
    figures = []
    for part, steps in content["parts"].items():
        for name, step in steps.items():
            figures += [figure for figure in step["figures"] if "error" not in figure]
            lines.append(f"{part}, {name}: {counts(step)}, {step['seconds']} s")
            lines += [f"    failed: {failure[:LONGEST]}" for failure in step["failed"][:MOST]]
            if len(step["failed"]) > MOST:
                lines.append(f"    and {len(step['failed']) - MOST} more")
    return [*lines, *predicted(figures), *headline(figures), *others(figures), *cases(figures)]


def counts(step: dict[str, Any]) -> str:
    """Numbers of tests passed and skipped, or of results; and of failures."""
    outcomes = [figure["outcome"] for figure in step["figures"] if "outcome" in figure]
    good = f"{len(step['figures'])} found out"
    if outcomes:
        good = f"{outcomes.count('passed')} tests passed, {outcomes.count('skipped')} skipped"
    return f"{good}, {len(step['failed'])} failed"


def predicted(figures: list[dict[str, Any]]) -> list[str]:
    """A line per prediction: the measured value, the expected range and the goal."""
    found = []
    for figure in figures:
        for name, prediction in figure.get("predicted", {}).items():
            low, high = prediction["expected"]
            goal = f", goal {prediction['goal']}" if "goal" in prediction else ""
            found.append(f"{figure['name']}: {name} {figure.get(name)}, expected {low} to {high}{goal}")
    return found


def headline(figures: list[dict[str, Any]]) -> list[str]:
    """Times of kernel, torch.mm and call, a row per backend and size."""
    rows = [("per target frame, us", "kernel", "torch.mm", "% of it", "call", "without the host", "eager")]
    eager = {figure["name"].split(", ", 1)[1]: figure["eager_us"] for figure in figures if "eager_us" in figure}
    for figure in figures:
        if "kernel_us" in figure:
            times = [figure[f"{name}_us"] for name in ("kernel", "mm", "call", "call_without_the_host")]
            share = f"{100 * figure['kernel_share_of_mm']:.1f}"
            numbers = [f"{time:.1f}" for time in times]
            known = eager.get(figure["name"].split(", ", 1)[1])
            plain = "" if known is None else f"{known:.1f}"
            rows.append((figure["name"], *numbers[:2], share, *numbers[2:], plain))
    return aligned(rows)


def others(figures: list[dict[str, Any]]) -> list[str]:
    """A line for each result of another kind."""
    lines = []
    for figure in figures:
        name = figure["name"]
        if "dense_tflops" in figure:
            rates = ", ".join(f"{kind} {rate:.0f}" for kind, rate in figure["dense_tflops"].items())
            lines.append(f"dense products, TFLOP/s: {rates}; copy {figure['copy_tbs']:.2f} TB/s")
        elif "metrics" in figure:
            lines += [f"{name}: {metric} {value}" for metric, value in figure["metrics"].items()][:40]
        elif "frame by frame" in figure:
            lines.append(f"{name}: {1e-3 * figure['us']:.2f} ms, loop {1e-3 * figure['frame by frame']['us']:.2f} ms")
        elif "plain" in figure:
            forms = [f"{1e-3 * form['us']:.2f} ms{memory(form)}" for form in (figure["ours"], figure["plain"])]
            lines.append(f"{name}: {forms[0]}; plain {forms[1]}")
        elif "images_per_second" in figure:
            lines.append(f"{name}: {figure['images_per_second']} images per second, J&F {figure['J&F']}")
        elif "gradient apart" in figure:
            time = f"{1e-3 * figure['us']:.2f} ms{memory(figure)}, " if "us" in figure else ""
            lines.append(f"{name}: {time}gradient {figure['gradient apart']:.4f} apart")
    return lines


def memory(figure: dict[str, Any]) -> str:
    """A result's peak memory, if it was measured."""
    return "" if figure["peak_mb"] is None else f", {figure['peak_mb']:.0f} MB"


def cases(figures: list[dict[str, Any]]) -> list[str]:
    """A row per case of benchmarks/gpu_cases.py."""
    rows = [("work, per target frame", "us", "% of dense", "x eager", "x compiled", "MB", "% of matrix")]
    for case in figures:
        if "share_of_dense" in case:
            ratios = [f"{case['ratio_to'][r]:.1f}" if r in case["ratio_to"] else "" for r in ("eager", "compiled")]
            peak = case["peak_mb"]
            used = ("", "") if peak is None else (f"{peak:.0f}", f"{100 * peak / case['matrix_mb']:.1f}")
            rows.append((case["name"], f"{case['us']:.1f}", f"{100 * case['share_of_dense']:.1f}", *ratios, *used))
    return aligned(rows)


def aligned(rows: list[tuple[str, ...]]) -> list[str]:
    """Rows in aligned columns; empty for a heading alone."""
    if len(rows) < 2:
        return []
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]
