"""How often 95 % intervals of made differences hold the true mean: python -m benchmarks.intervals.

Ours (`timecycle.evaluation.comparison.paired.mean_difference`) beside other bootstrap intervals of the same resamples,
and beside ours with every object drawn by itself, as if objects of a sequence were independent. Writes
benchmarks/results/intervals.json, shown in docs/guides/compare.md.
"""

import json
from statistics import NormalDist

import numpy as np

from benchmarks.report import ROOT
from docs import markdown
from timecycle.evaluation.comparison.paired import CONFIDENCE, draws, mean_difference

RESULTS = ROOT / "benchmarks" / "results" / "intervals.json"
SEQUENCES = (5, 8, 11, 20, 30, 60)
REPEATS = 1000
SIZES = (1, 3, 1, 2, 1, 4, 2, 1, 1, 3)
"""Objects of the sequences, in turn."""
KINDS = ("alike in all sequences", "in one sequence of five")
OURS, PERCENTILE, BCA, ALONE = "ours", "percentile", "BCa", "ours, drawing objects"


def made(kind: str, clusters: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, float]:
    """Differences of objects of these sequences, and their true mean."""
    count = clusters[-1] + 1
    of_sequence, mean = rng.normal(0.02, 0.05, count), 0.02
    if kind == KINDS[1]:
        of_sequence, mean = np.where(rng.random(count) < 0.2, rng.normal(0.1, 0.1, count), 0.0), 0.02
    return of_sequence[clusters] + rng.normal(0, 0.02, len(clusters)), mean


def others(values: np.ndarray, clusters: np.ndarray) -> dict[str, np.ndarray]:
    """Ends of the plain percentile interval, and of the BCa interval (Efron, JASA 1987)."""
    normal, tail = NormalDist(), (1 - CONFIDENCE) / 2
    sums, sizes = np.bincount(clusters, values), np.bincount(clusters)
    counts = draws(len(sums))
    means = (counts @ sums) / (counts @ sizes)
    below = np.clip((means < values.mean()).mean(), 1e-6, 1 - 1e-6)
    bias = normal.inv_cdf(below)
    left_out = (sums.sum() - sums) / (sizes.sum() - sizes)
    away = left_out.mean() - left_out
    skew = (away**3).sum() / (6 * (away**2).sum() ** 1.5)
    ends = [bias + normal.inv_cdf(level) for level in (tail, 1 - tail)]
    levels = [normal.cdf(bias + end / (1 - skew * end)) for end in ends]
    return {PERCENTILE: np.quantile(means, [tail, 1 - tail]), BCA: np.quantile(means, levels)}


def coverage(kind: str, sequences: int) -> dict[str, float]:
    """For each kind of interval, the share that holds the true mean."""
    rng = np.random.default_rng([sequences, KINDS.index(kind)])
    clusters = np.repeat(np.arange(sequences), np.resize(SIZES, sequences))
    inside = dict.fromkeys((OURS, PERCENTILE, BCA, ALONE), 0)
    for _ in range(REPEATS):
        values, mean = made(kind, clusters, rng)
        found = {OURS: mean_difference(values, clusters)[1:3], **others(values, clusters)}
        found[ALONE] = mean_difference(values, np.arange(len(values)))[1:3]
        for name, (low, high) in found.items():
            inside[name] += bool(low <= mean <= high)
    return {name: count / REPEATS for name, count in inside.items()}


def block() -> str:
    """The table of the guide."""
    stored = json.loads(RESULTS.read_text())
    names = (OURS, PERCENTILE, BCA, ALONE)
    rows = [
        [kind, count, *(f"{100 * shares[name]:.0f} %" for name in names)]
        for kind, by_count in stored["coverage"].items()
        for count, shares in by_count.items()
    ]
    table = markdown.table(["made differences", "sequences", *names], rows)
    each = f"Each row: {stored['repeats']} sets of made differences; the share of intervals that hold the true mean."
    return f"{table}\n\n{each}"


def main() -> None:
    """Measure, write, print."""
    found = {kind: {str(count): coverage(kind, count) for count in SEQUENCES} for kind in KINDS}
    RESULTS.write_text(json.dumps({"repeats": REPEATS, "coverage": found}, indent=1) + "\n")
    print(block())


if __name__ == "__main__":
    main()
