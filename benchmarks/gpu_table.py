"""A results file of benchmarks/gpu_check.py as a short table."""

from typing import Any


def table(content: dict[str, Any]) -> list[str]:
    """A short account of a results file: what failed, and a row a case."""
    lines = [f"{content['gpu']}, {content['date']}, commit {content['commit']}"]
    for name, part in content["parts"].items():
        count = f"{part['passed']} passed, {part['skipped']} skipped, " if "passed" in part else ""
        lines.append(f"{name}: {count}{len(part['failed'])} failed, {part['seconds']} s")
        lines += [f"    failed: {failure}" for failure in part["failed"]]
        lines += [f"    not installed: {what}" for what in part.get("not installed", [])]
        said = part.get("said", [])
        lines += [f"    {line}" for line in ([said] if isinstance(said, str) else said)]
    measured = content["parts"].get("benchmarks", {})
    if measured.get("ceilings"):
        rates = ", ".join(f"{name} {rate:.0f}" for name, rate in measured["ceilings"]["dense_tflops"].items())
        lines.append(f"dense products, TFLOP/s: {rates}; copy {measured['ceilings']['copy_tbs']:.2f} TB/s")
    sequence = measured.get("sequence", {})
    if "us" in sequence:
        ours, loop = (1e-3 * timing["us"] for timing in (sequence, sequence["frame by frame"]))
        lines.append(f"{sequence['name']}: {ours:.2f} ms in all, frame by frame {loop:.2f} ms")
    for found in measured.get("training", []):
        if "us" in found:
            said = [
                f"{1e-3 * form['us']:.2f} ms" + ("" if form["peak_mb"] is None else f", {form['peak_mb']:.0f} MB")
                for form in (found["ours"], found["plain"])
            ]
            lines.append(f"{found['name']}: {said[0]}; plain {said[1]}")
    rows = [("work, per target frame", "us", "% of dense", "x eager", "x compiled", "MB", "% of matrix")]
    for case in measured.get("cases", []):
        if "us" in case:
            ratios = [f"{case['ratio_to'][r]:.1f}" if r in case["ratio_to"] else "" for r in ("eager", "compiled")]
            peak = case["peak_mb"]
            memory = ("", "") if peak is None else (f"{peak:.0f}", f"{100 * peak / case['matrix_mb']:.1f}")
            rows.append((case["name"], f"{case['us']:.1f}", f"{100 * case['share_of_dense']:.1f}", *ratios, *memory))
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    if len(rows) > 1:
        lines += [
            "  ".join([row[0].ljust(widths[0]), *(c.rjust(w) for c, w in zip(row[1:], widths[1:], strict=True))])
            for row in rows
        ]
    return lines
