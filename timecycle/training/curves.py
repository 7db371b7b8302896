"""The numbers of a log thinned to curves of bounded length, step by step, for the page of a run."""

import math
from dataclasses import dataclass

import numpy as np

MOST = 800  # points of a curve
SCORE = "J&F"
_LARGEST = 1e300  # larger numbers are left out, as those that are not finite


@dataclass(frozen=True)
class Points:
    """Curves over the same steps, as thinned by `Curves`. N points; NaN where a curve has none."""

    steps: np.ndarray
    """[N]: the mean of the steps that a point stands for."""
    width: int
    """Steps for which a point stands."""
    means: dict[str, np.ndarray]
    """By name [N]."""
    lows: dict[str, np.ndarray]
    highs: dict[str, np.ndarray]
    counts: dict[str, np.ndarray]
    """By name [N]: numbers for which a point stands."""

    def smoothed(self, name: str) -> tuple[np.ndarray, int]:
        """A moving average over neighboring points [N], and over how many steps it goes.

        Over a tenth of the curve, at most 25 points; at the ends over those that are there.
        """
        side = min(len(self.steps) // 20, 12)
        counts = self.counts[name]
        sums = np.where(counts > 0, self.means[name] * counts, 0.0)
        weights, window = counts.astype(float), np.ones(2 * side + 1)
        total, number = (np.convolve(values, window)[side : side + len(values)] for values in (sums, weights))
        found = np.where(counts > 0, total / np.maximum(number, 1), np.nan)
        return found, (2 * side + 1) * self.width


class Curves:
    """Curves by name, of at most `MOST` points each, however many steps are added.

    A point stands for `width` neighboring steps, with their mean, smallest and largest value. When steps pass the last
    point, neighbors are merged and the width doubles, so that a step costs the same at any length of the run.
    """

    def __init__(self) -> None:
        self.width = 1
        self.last = 0
        """The largest step added."""
        self.best: tuple[int, float] | None = None
        """Step and value of the first of the best scores."""
        # By name and number of the point: count, sum of steps, sum of values, least, most.
        self._lines: dict[str, dict[int, list[float]]] = {}

    def add(self, step: int, values: dict[str, float]) -> None:
        """Add the values of a step, counted from 1. Those that are not finite are left out."""
        self.last = max(self.last, step)
        while (index := (step - 1) // self.width) >= MOST:
            self._merge()
        for name, value in values.items():
            if not abs(value) < _LARGEST:
                continue
            if name == SCORE and (self.best is None or value > self.best[1]):
                self.best = step, value
            _merge_into(self._lines.setdefault(name, {}), index, [1, step, value, value, value])

    @property
    def names(self) -> list[str]:
        """The names, in the order in which they came first."""
        return list(self._lines)

    def points(self, names: list[str]) -> Points:
        """These curves, without the points at which none of them has a value."""
        found = sorted(set().union(*(self._lines[name] for name in names)))
        none = [0, 0, 0, math.nan, math.nan]
        table = np.array([[self._lines[name].get(index, none) for index in found] for name in names], float)
        table = table.reshape(len(names), len(found), 5)
        counts = table[:, :, 0]
        with np.errstate(invalid="ignore"):  # 0 / 0 is NaN
            means = table[:, :, 2] / counts

        def named(rows: np.ndarray) -> dict[str, np.ndarray]:
            return dict(zip(names, rows, strict=True))

        steps = table[:, :, 1].sum(axis=0) / counts.sum(axis=0)
        return Points(steps, self.width, named(means), named(table[:, :, 3]), named(table[:, :, 4]), named(counts))

    def _merge(self) -> None:
        self.width *= 2
        for name, line in self._lines.items():
            merged: dict[int, list[float]] = {}
            for index, point in line.items():
                _merge_into(merged, index // 2, point)
            self._lines[name] = merged


def _merge_into(line: dict[int, list[float]], index: int, point: list[float]) -> None:
    """Add a point to the one at its place."""
    if (found := line.get(index)) is None:
        line[index] = point
        return
    found[0] += point[0]
    found[1] += point[1]
    found[2] += point[2]
    found[3] = min(found[3], point[3])
    found[4] = max(found[4], point[4])
