"""Tests of hypotheses with p-values that hold far out in the tail, where false alarms of 1e-9 are decided.

Statistics with an exact distribution under the hypothesis are preferred: χ² for the sum of squares of Gaussian values,
Student's t for the correlation of two Gaussian vectors, the binomial for counts. All p-values are two-sided.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import ndtri as ndtri

Values = NDArray[np.float64]


def two_sided(lower: float, upper: float) -> float:
    """Return the two-sided p-value of a statistic with these lower and upper tail probabilities."""
    return float(min(1.0, 2 * min(lower, upper)))


def variance_p(sum_of_squares: float, count: int) -> float:
    """Return the p-value of Σz² of `count` standard normal values; the distribution is χ², exactly."""
    if not math.isfinite(sum_of_squares):
        return 0.0
    return two_sided(float(stats.chi2.cdf(sum_of_squares, count)), float(stats.chi2.sf(sum_of_squares, count)))


def mean_p(total: float, count: int) -> float:
    """Return the p-value of the sum of `count` standard normal values; exact."""
    if not math.isfinite(total):
        return 0.0
    return float(2 * stats.norm.sf(abs(total) / math.sqrt(count)))


def correlation_p(correlation: float, count: int) -> float:
    """Return the p-value of the uncentred correlation of two independent Gaussian vectors of `count` values; exact."""
    if not math.isfinite(correlation):
        return 0.0
    if abs(correlation) >= 1:
        return 0.0
    t = correlation * math.sqrt((count - 1) / (1 - correlation * correlation))
    return float(2 * stats.t.sf(abs(t), count - 1))


def count_p(found: int, trials: int, probability: float) -> float:
    """Return the p-value of a binomial count; exact, conservative."""
    lower = float(stats.binom.cdf(found, trials, probability))
    upper = float(stats.binom.sf(found - 1, trials, probability))
    return two_sided(lower, upper)


def shape_p(values: Values, bins: int = 64) -> tuple[float, float]:
    """Return χ² over bins of equal probability of the standard normal, and its p-value."""
    edges = ndtri(np.arange(1, bins) / bins)
    counts = np.bincount(np.searchsorted(edges, values), minlength=bins)
    expected = len(values) / bins
    statistic = float(((counts - expected) ** 2 / expected).sum())
    return statistic, float(stats.chi2.sf(statistic, bins - 1))


def repeated_windows(words: NDArray[Any], width: int = 4) -> int:
    """Return how many windows of `width` consecutive values occur again elsewhere, bit for bit.

    Windows begin at every value, so a repetition is found wherever it begins.
    """
    if len(words) < width + 1:
        return 0
    with np.errstate(over="ignore"):
        wide = words.astype(np.uint64)
        mixed = np.zeros(len(words) - width + 1, np.uint64)
        for place in range(width):
            mixed = (mixed ^ wide[place : place + len(mixed)]) * np.uint64(0x9E3779B97F4A7C15)
            mixed ^= mixed >> np.uint64(29)
    mixed.sort()
    return int((mixed[1:] == mixed[:-1]).sum())


def values_needed_for_std(relative_error: float, false_alarm: float, power: float = 0.999) -> int:
    """Return how many Gaussian values show a `relative_error` of their standard deviation with that power.

    The relative standard error of an estimated standard deviation is 1/√(2n).
    """
    reach = float(-ndtri(false_alarm / 2) - ndtri(1 - power))
    return math.ceil(reach**2 / 2 / relative_error**2)


def smallest_std_error(count: int, false_alarm: float, power: float = 0.999) -> float:
    """Return the smallest relative error of a standard deviation that `count` values show with that power."""
    reach = float(-ndtri(false_alarm / 2) - ndtri(1 - power))
    return reach / math.sqrt(2 * max(1, count))


def smallest_rate_error(trials: int, rate: float, false_alarm: float, power: float = 0.999) -> float:
    """Return the smallest relative error of a rate that so many independent trials show with that power."""
    reach = float(-ndtri(false_alarm / 2) - ndtri(1 - power))
    return reach * math.sqrt((1 - rate) / (rate * max(1, trials)))


def trials_needed_for_rate(relative_error: float, rate: float, false_alarm: float, power: float = 0.999) -> int:
    """Return how many independent trials show a `relative_error` of their rate with that power."""
    reach = float(-ndtri(false_alarm / 2) - ndtri(1 - power))
    return math.ceil(reach**2 * (1 - rate) / rate / relative_error**2)
