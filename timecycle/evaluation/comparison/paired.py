"""Statistics of paired differences: bootstrap intervals over clusters, and the sign test. Needs no torch or SciPy."""

import math
from functools import lru_cache
from statistics import NormalDist
from typing import NamedTuple

import numpy as np

DRAWS = 10_000
"""Bootstrap samples of an interval."""
SEED = 0
"""Of their random numbers."""
CONFIDENCE = 0.95
"""Of an interval."""
LEAST_CLUSTERS = 5
"""With fewer there is no interval."""


class Difference(NamedTuple):
    """A mean difference over objects, and its 95 % interval."""

    mean: float
    """Mean over the objects; NaN if there are none."""
    low: float
    """Lower end of the interval; NaN with fewer than 5 sequences."""
    high: float
    """Upper end of the interval."""
    objects: int
    """Number of objects."""
    sequences: int
    """Number of sequences that they are of."""


class SignTest(NamedTuple):
    """A sign test: in how many sequences a run is better or worse than the baseline."""

    better: int
    """Sequences with a positive difference."""
    worse: int
    """Sequences with a negative one."""
    equal: int
    """Sequences without any, which the test leaves out."""
    p: float
    """Probability, if better and worse were equally likely, of a split at least as uneven (two-sided, exact)."""


def mean_difference(differences: np.ndarray, clusters: np.ndarray) -> Difference:
    """The mean of paired differences, with a 95 % bootstrap interval that resamples clusters.

    Args:
        differences: float64 [N], a value per object, without NaN.
        clusters: int [N], the sequence of each object.

    Objects of one sequence are not independent, so sequences are drawn, with replacement and with all their objects;
    of each of the `DRAWS` samples the mean over its objects is taken, which is how DAVIS averages. The interval is the
    percentile interval, at levels that are widened for small numbers of sequences S:

        Phi(-sqrt(S / (S - 1)) t)    and 1 minus that, with t the 0.975 quantile of Student's t with S - 1 degrees

    Random numbers are seeded, so that equal differences have equal intervals.

    Sources: percentile interval, Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13; clusters,
    Davison and Hinkley, Bootstrap Methods and their Application, 1997, section 3.8; levels, the expanded percentile
    interval of Hesterberg, What Teachers Should Know About the Bootstrap, The American Statistician, 2015.
    """
    places, members = np.unique(clusters, return_inverse=True)
    count = len(places)
    if not len(differences):
        return Difference(math.nan, math.nan, math.nan, 0, 0)
    mean = float(np.mean(differences))
    if count < LEAST_CLUSTERS:
        return Difference(mean, math.nan, math.nan, len(differences), count)
    sums, sizes = np.bincount(members, differences), np.bincount(members)
    counts = draws(count)
    means = (counts @ sums) / (counts @ sizes)
    level = _level(count)
    low, high = np.quantile(means, [level, 1 - level])
    return Difference(mean, float(low), float(high), len(differences), count)


def sign_test(differences: np.ndarray) -> SignTest:
    """The exact two-sided sign test of [N] differences that are independent; those that are 0 are left out.

    Source: Dixon and Mood, The Statistical Sign Test, JASA 1946.
    """
    better, worse = int(np.sum(differences > 0)), int(np.sum(differences < 0))
    counted = better + worse
    tail = sum(math.comb(counted, i) for i in range(min(better, worse) + 1))
    # In whole numbers until the end, since 2 ** -counted may be too small for a float.
    return SignTest(better, worse, len(differences) - counted, min(1.0, 2 * tail / 2**counted))


@lru_cache(maxsize=64)
def draws(count: int) -> np.ndarray:
    """How often each of `count` clusters is in each sample, float64 [DRAWS, count]."""
    generator = np.random.default_rng(SEED)
    return generator.multinomial(count, np.full(count, 1 / count), DRAWS).astype(np.float64)


@lru_cache
def _level(count: int) -> float:
    """The lower level of the quantiles for so many clusters, see `mean_difference`."""
    return NormalDist().cdf(-math.sqrt(count / (count - 1)) * _student_quantile(count - 1))


def _student_quantile(degrees: int) -> float:
    """The t with P(|T| < t) = `CONFIDENCE` for Student's t, by bisection."""
    low, high = 0.0, 1e3
    while high - low > 1e-9:
        middle = (low + high) / 2
        low, high = (middle, high) if _student_within(middle, degrees) < CONFIDENCE else (low, middle)
    return low


def _student_within(t: float, degrees: int) -> float:
    """P(|T| < t) for Student's t with a whole number of degrees (Abramowitz and Stegun, 26.7.3 and 26.7.4)."""
    angle = math.atan(t / math.sqrt(degrees))
    sine, cosine = math.sin(angle), math.cos(angle)
    odd = degrees % 2
    term, total = (cosine if odd else 1.0), 0.0
    for i in range(1 + odd, degrees, 2):
        total += term
        term *= cosine**2 * i / (i + 1)
    return 2 / math.pi * (angle + sine * total) if odd else sine * total
