"""Is every record put into exactly so many random steps of each pass, for itself, and anew in each pass?"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.special import rel_entr

from hushgrad.arguments import open_unit_interval
from hushgrad.checks.verification.checks.sampling import SamplingReading, range_check
from hushgrad.checks.verification.verdict import Cause, Check, by_code
from hushgrad.sampling.scheme import Allocation

PASSES = 40
"""How many passes show what a training needs to know, where each holds few records."""

_CHECKS = 3

Steps = NDArray[np.int64]


def read_passes(
    passes: Sequence[Sequence[Sequence[int]]], *, population: int, allocation: Allocation, false_alarm: float
) -> SamplingReading:
    """Test passes over range(population) against random allocation.

    `passes` holds, for each pass, the records of each of its steps, empty ones included; at least 2. `false_alarm` is
    the most probability that passes as described fail any of the checks.

    That each record is in the right number of steps is looked at, and no record is left out. Given that, for random
    allocation: how many records each step has is close to multinomial, neither less even nor *more* (batches of one
    size are no random allocation); and records agree by chance alone, with themselves in the next pass (a partition
    that is kept) and with the record beside them (blocks of the data).
    """
    each = open_unit_interval("false_alarm", false_alarm) / _CHECKS
    bins, times = allocation
    drawn = [np.asarray(step, dtype=np.int64).reshape(-1) for steps in passes for step in steps]
    found = [range_check(drawn, population), _exactly(passes, population, allocation)]
    if all(check.passed for check in found) and times < bins:
        taken = [_steps_of(steps, times) for steps in passes]
        again = [_in_common(one, other) for one, other in zip(taken[::2], taken[1::2], strict=False)]
        beside = [_in_common(one[::2], one[1::2]) for one in taken]
        found.append(_sizes(passes, population, allocation, each))
        claim = "the steps of a record do not follow from those of the pass before"
        found.append(
            _by_chance(
                "sampling-overlaps", claim, again, allocation, each, "an allocation that is kept for a pass more"
            )
        )
        claim = "the steps of a record do not follow from those of the record beside it"
        if population > 1:
            found.append(
                _by_chance("sampling-neighbours", claim, beside, allocation, each, "blocks of data that stay together")
            )
    checks = by_code(found)
    measured = sum(map(len, drawn)) / (len(passes) * population * bins)
    return SamplingReading(measured, checks, tuple(_CAUSES[code] for code, check in checks.items() if not check.passed))


def _exactly(passes: Sequence[Sequence[Sequence[int]]], population: int, allocation: Allocation) -> Check:
    wrong = 0
    for steps in passes:
        records = np.concatenate([np.asarray(step, dtype=np.int64).reshape(-1) for step in steps])
        counts = np.bincount(records[(records >= 0) & (records < population)], minlength=population)
        wrong += len(steps) != allocation.bins or bool((counts != allocation.participations).any())
    return Check(
        code="sampling-each-once",
        part="sampling",
        claim=f"every record is in exactly {allocation.participations} of the {allocation.bins} steps of a pass",
        measured=f"{wrong} of {len(passes)} passes hold a record more or less often",
        passed=wrong == 0,
        sample_size=len(passes) * population,
        power="every case",
    )


def _steps_of(steps: Sequence[Sequence[int]], times: int) -> Steps:
    """Return the steps of each record in a pass: [N, times], ascending."""
    records = np.concatenate([np.asarray(step, dtype=np.int64).reshape(-1) for step in steps])
    numbers = np.repeat(np.arange(len(steps)), [len(step) for step in steps])
    found: Steps = numbers[np.argsort(records, kind="stable")].reshape(-1, times)
    return found


def _in_common(one: Steps, other: Steps) -> tuple[int, int]:
    """Return how many pairs of records are compared, and how many steps they have in common in all."""
    number = min(len(one), len(other))
    return number, int((one[:number, :, None] == other[:number, None, :]).sum())


def _sizes(passes: Sequence[Sequence[Sequence[int]]], population: int, allocation: Allocation, alpha: float) -> Check:
    """No step is preferred in all passes together, and in each pass steps are no more even than chance has them.

    A step's records in all passes are binomial; over steps by Bonferroni. Evenness is Pearson's statistic, (t − 1)/(t −
    k) times which is close to a chi-square of t − 1 degrees of freedom for each pass.
    """
    bins, times = allocation
    sizes = np.array([[len(step) for step in steps] for steps in passes])
    trials, expected = len(passes) * population, population * times / bins
    totals = sizes.sum(0)
    most, least = int(totals.max()), int(totals.min())
    tail = min(stats.binom.sf(most - 1, trials, times / bins), stats.binom.cdf(least, trials, times / bins))
    statistic = float(((sizes - expected) ** 2).sum()) / expected * (bins - 1) / (bins - times)
    freedom = len(passes) * (bins - 1)
    p = min(1.0, 2 * min(2 * bins * float(tail), float(stats.chi2.cdf(statistic, freedom))))
    return Check(
        code="sampling-sizes",
        part="sampling",
        claim="records are shared out over the steps of a pass as by chance, none preferred, and no more evenly",
        measured=f"Pearson's statistic {statistic:.6g} of {freedom} degrees of freedom, {least} to {most} records in a "
        f"step of all passes",
        passed=p >= alpha,
        sample_size=len(passes) * bins,
        statistic=statistic,
        p_value=p,
        false_alarm=alpha,
        power="batches of one size (a shuffled order that is cut), and steps that are preferred",
    )


def _by_chance(
    code: str, claim: str, pairs: Sequence[tuple[int, int]], allocation: Allocation, alpha: float, power: str
) -> Check:
    """Steps in common of independent pairs of records: binomial for one participation, else a sum of hypergeometric.

    That sum is no more spread than the binomial of its mean (Hoeffding, 1963), so that Chernoff's bound holds for it.
    """
    bins, times = allocation
    number, common = sum(count for count, _ in pairs), sum(found for _, found in pairs)
    trials, rate = number * times, times / bins
    if times == 1:
        tail = float(min(stats.binom.sf(common - 1, trials, rate), stats.binom.cdf(common, trials, rate)))
    else:
        tail = math.exp(-trials * float(rel_entr([common / trials, 1 - common / trials], [rate, 1 - rate]).sum()))
    p = min(1.0, 2 * tail)
    return Check(
        code=code,
        part="sampling",
        claim=claim,
        measured=f"{common} steps in common, {trials * rate:.6g} expected of {number} pairs",
        passed=p >= alpha,
        sample_size=number,
        statistic=float(common),
        p_value=p,
        false_alarm=alpha,
        power=power,
    )


_CAUSES = {
    "sampling-range": Cause(
        "sampling-with-replacement",
        "a draw holds a record twice, or a record that is none.",
        "draw each record at most once in a logical batch.",
    ),
    "sampling-each-once": Cause(
        "sampling-allocation",
        "a record is in more or fewer steps of a pass than is charged.",
        "put every record into exactly so many steps.",
    ),
    "sampling-sizes": Cause(
        "sampling-not-random",
        "records are not put into steps each for itself: batches of a shuffled order have one size.",
        "draw each record's step uniformly, independently of all others, or charge disjoint batches.",
    ),
    "sampling-overlaps": Cause(
        "sampling-kept",
        "the steps of a pass follow from those of the pass before.",
        "draw the allocation anew in every pass.",
    ),
    "sampling-neighbours": Cause(
        "sampling-blocks",
        "records that lie side by side share their steps.",
        "draw each record's step for itself.",
    ),
}
