"""Are examples drawn as a scheme says, where it says less than that every one is drawn independently?

Of such draws only what the charge rests on is known: no record takes part more often than the scheme's inclusion
probability, steps are drawn afresh, and logical batches have the expected size on average. Each of these is tested with
a bound that holds for any law with these properties, so p-values are conservative, and what they show is coarser than
for Poisson sampling (`read_sampling`).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hushgrad.arguments import open_unit_interval
from hushgrad.checks.verification.checks.sampling import SamplingReading, range_check
from hushgrad.checks.verification.verdict import Cause, Check, by_code

DRAWS = 4000
"""How many draws show what a training needs to know, where each holds few records."""

_CHECKS = 4

Counts = NDArray[np.int64]


def read_draws(
    draws: Sequence[Sequence[int]],
    *,
    population: int,
    inclusion: float,
    expected_size: float | None,
    largest_batch: int | None,
    draws_afresh: bool,
    false_alarm: float,
) -> SamplingReading:
    """Test draws from range(population) against what a scheme says of them.

    Args:
        draws: the indices of each logical batch, in the order drawn, empty ones included; at least 2.
        population: N, the number of records.
        inclusion: the greatest probability of a record to take part in a step.
        expected_size: B, the mean size of a logical batch; None where the scheme does not say.
        largest_batch: the most records in a logical batch; None for all.
        draws_afresh: whether steps are independent of each other. Where they are not, one run says nothing certain of
            how often records take part, and only each draw by itself is tested.
        false_alarm: the most probability that draws as described fail any of the checks.
    """
    each = open_unit_interval("false_alarm", false_alarm) / _CHECKS
    sets = [np.asarray(draw, dtype=np.int64).reshape(-1) for draw in draws]
    sizes = np.array([len(draw) for draw in sets])
    most = population if largest_batch is None else min(population, largest_batch)
    found = [range_check(sets, population)]
    if draws_afresh:
        found.append(_most_often(_counts(sets, population), len(sets), inclusion, each))
        found.append(_afresh(sets, sizes, population, most, inclusion, each))
        if expected_size is not None:
            found.append(_mean_size(sizes, most, expected_size, each))
    checks = by_code(found)
    measured = float(sizes.sum()) / (len(sets) * population)
    return SamplingReading(measured, checks, tuple(_CAUSES[code] for code, check in checks.items() if not check.passed))


def _counts(sets: Sequence[Counts], population: int) -> Counts:
    joined = np.concatenate(sets)
    return np.bincount(joined[(joined >= 0) & (joined < population)], minlength=population)


def _most_often(counts: Counts, steps: int, inclusion: float, alpha: float) -> Check:
    """The record that took part most often, against a binomial count; over all records by Bonferroni."""
    most = int(counts.max())
    p = min(1.0, len(counts) * float(stats.binom.sf(most - 1, steps, inclusion)))
    shown = float(stats.binom.isf(alpha / len(counts), steps, inclusion)) / steps
    return Check(
        code="sampling-rate",
        part="sampling",
        claim="no record takes part more often than the charge allows",
        measured=f"the most frequent one in {most} of {steps} steps, {inclusion:.6g} of them charged",
        passed=p >= alpha,
        sample_size=steps,
        statistic=float(most),
        p_value=p,
        false_alarm=alpha,
        power=f"a record that takes part in {shown:.2%} of the steps in place of {inclusion:.2%}",
    )


def _room(sizes: Counts, most: int, alpha: float) -> float:
    """Return how far the mean of so many sizes in [0, most] is from its expectation, but with probability `alpha`.

    Either side of it: the empirical Bernstein bound of Maurer and Pontil (2009), theorem 4.
    """
    log, number = math.log(4 / alpha), len(sizes)
    return math.sqrt(2 * float(sizes.var(ddof=1)) * log / number) + 7 * most * log / (3 * (number - 1))


def _mean_size(sizes: Counts, most: int, expected: float, alpha: float) -> Check:
    number, mean, room = len(sizes), float(sizes.mean()), _room(sizes, most, alpha)
    return Check(
        code="sampling-sizes",
        part="sampling",
        claim="logical batches have the expected size on average",
        measured=f"{mean:.6g} records measured, {expected:.6g} expected",
        passed=abs(mean - expected) <= room + 1e-9 * expected,
        sample_size=number,
        statistic=mean,
        false_alarm=alpha,
        power=f"a mean size that is off by {2 * room:.3g}",
    )


def _afresh(sets: Sequence[Counts], sizes: Counts, population: int, most: int, inclusion: float, alpha: float) -> Check:
    """Records in common of steps 1 and 2, 3 and 4, …: neither one record too often nor, in all, too few.

    Too often: of a record with inclusion p the pairs that both hold it are binomial with p² at most. Too few: by
    Cauchy and Schwarz independent steps of mean size m have at least m²/N records in common on average, and a sum of
    independent X_i >= 0 is below its mean by t with probability exp(−t²/(2·ΣE X_i²)) at most (Maurer, 2003), where
    E X_i² is at most the largest batch times E X_i. For m its lower bound with half of `alpha` is taken.
    """
    pairs = list(zip(sets[::2], sets[1::2], strict=False))
    common = [np.intersect1d(one, other) for one, other in pairs]
    counts = _counts(common, population) if common else np.zeros(population, np.int64)
    p_often = min(1.0, population * float(stats.binom.sf(int(counts.max()) - 1, len(pairs), inclusion**2)))
    least_size = max(0.0, float(sizes.mean()) - _room(sizes, most, alpha / 2))
    found, least = int(counts.sum()), len(pairs) * least_size**2 / population
    p_few = math.exp(-((least - found) ** 2) / (2 * most * least)) if found < least else 1.0
    p = min(1.0, 4 * min(p_often, p_few))
    return Check(
        code="sampling-overlaps",
        part="sampling",
        claim="draws of different steps are independent",
        measured=f"{found} records in common of {len(pairs)} pairs of steps, one record in {int(counts.max())} of them",
        passed=p >= alpha,
        sample_size=len(pairs),
        statistic=float(found),
        p_value=p,
        false_alarm=alpha,
        power="batches that come again, and records that take turns (shuffling)",
    )


_CAUSES = {
    "sampling-range": Cause(
        "sampling-with-replacement",
        "a draw holds a record twice, or a record that is none.",
        "draw each record at most once in a logical batch.",
    ),
    "sampling-rate": Cause(
        "sampling-rate",
        "a record takes part more often than is charged.",
        "charge the greatest probability with which any record is drawn (inclusion_probability, event).",
    ),
    "sampling-sizes": Cause(
        "sampling-size",
        "logical batches are larger or smaller than the sum is divided by.",
        "return from expected_batch_size what the sampler draws on average.",
    ),
    "sampling-overlaps": Cause(
        "sampling-dependent",
        "a draw depends on the one before.",
        "draw every step independently, or say draws_afresh = False and charge what that costs.",
    ),
}
