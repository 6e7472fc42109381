"""Are examples drawn as charged: every one independently with probability q, in every step?

Shuffling must not pass as Poisson sampling. A draw is the indices of one logical batch. Counts of independent
inclusions are binomial, so p-values are exact or conservative.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from hushgrad.accounting.events.truncated_poisson import inclusion_rate, sizes_beyond
from hushgrad.arguments import open_unit_interval, probability, whole_number
from hushgrad.checks.verification.checks import statistics as st
from hushgrad.checks.verification.mistakes.sampling import sampling_causes
from hushgrad.checks.verification.verdict import Cause, Check, by_code
from hushgrad.errors import InvalidArgumentError

Indices = NDArray[np.int64]

_CHECKS = 6
_LEAST_EXPECTED = 20
_GROUPS = 256


@dataclass(frozen=True, slots=True)
class SamplingReading:
    """What draws were found to be: the measured rate, the checks by code, and the mistakes that fit."""

    rate: float
    checks: dict[str, Check]
    causes: tuple[Cause, ...]


def _pair_rate(population: int, rate: float, max_batch_size: int | None) -> float:
    """Return the probability of two given records to take part together: E K(K − 1) / (N(N − 1)), K the size."""
    if max_batch_size is None or max_batch_size >= population or population < 2:
        return rate * rate
    beyond = sizes_beyond(population, rate, max_batch_size)  # k(k − 1) grows by 2k from k to k + 1
    lost = float((2 * beyond * stats.binom.sf(beyond, population, rate)).sum())
    return rate * rate - lost / (population * (population - 1))


def read_sampling(
    draws: Sequence[Sequence[int]],
    *,
    population: int,
    rate: float,
    false_alarm: float,
    max_batch_size: int | None = None,
) -> SamplingReading:
    """Test whether `draws` are independent Poisson draws from range(population) with this rate.

    Args:
        draws: the indices of each logical batch, in the order drawn, empty ones included; at least 20.
        population: N, the number of records.
        rate: q, the claimed probability of each record to take part in each step.
        false_alarm: the probability that true Poisson sampling fails any of the checks.
        max_batch_size: of truncated Poisson sampling, to which larger draws are cut at random; None for none.
    """
    count = whole_number("population", population, minimum=1)
    q = probability("rate", rate)
    each = open_unit_interval("false_alarm", false_alarm) / _CHECKS
    if len(draws) < _LEAST_EXPECTED:
        raise InvalidArgumentError(
            f"draws must be at least {_LEAST_EXPECTED}, got {len(draws)}", cure="Record more logical batches"
        )
    sets = [np.asarray(draw, dtype=np.int64).reshape(-1) for draw in draws]
    sizes = np.array([len(draw) for draw in sets])
    measured = float(sizes.sum()) / (len(sets) * count)
    sizes_check = _sizes(sizes, count, q, each, max_batch_size)
    pair = _pair_rate(count, q, max_batch_size)
    q = inclusion_rate(count, q, max_batch_size)
    checks = by_code(
        (
            range_check(sets, count),
            _rate(sizes, count, q, each),
            sizes_check,
            _inclusion(sets, count, q, each),
            _overlaps(sets, count, q, each),
            _neighbours(sets, count, pair, each),
            _repeats(sets, count, q, each),
        )
    )
    return SamplingReading(measured, checks, sampling_causes(sets, sizes, count, q, checks))


def draws_needed(population: int, rate: float, resolution: float, false_alarm: float) -> int:
    """Return how many draws show a relative error `resolution` of the rate with probability 0.999."""
    if rate >= 1:
        return _LEAST_EXPECTED
    trials = st.trials_needed_for_rate(resolution, rate, false_alarm / _CHECKS)
    return max(200, math.ceil(trials / population))


def range_check(sets: Sequence[Indices], count: int) -> Check:
    """Every draw holds records of the data set, each at most once."""
    strange = sum(int(((draw < 0) | (draw >= count)).any()) for draw in sets)
    twice = sum(len(np.unique(draw)) < len(draw) for draw in sets)
    return Check(
        code="sampling-range",
        part="sampling",
        claim="every draw holds records of the data set, each at most once",
        measured=f"{twice} draws with a record twice, {strange} with records that are none",
        passed=not strange and not twice,
        sample_size=len(sets),
        power="every case",
    )


def _rate(sizes: Indices, count: int, q: float, alpha: float) -> Check:
    total, trials = int(sizes.sum()), len(sizes) * count
    p = st.count_p(total, trials, q)
    return Check(
        code="sampling-rate",
        part="sampling",
        claim="records take part with the charged rate",
        measured=f"{total / trials:.6g} measured, {q:.6g} charged",
        passed=p >= alpha,
        sample_size=trials,
        statistic=float(total),
        p_value=p,
        false_alarm=alpha,
        power="every error"
        if q == 1
        else f"{st.smallest_rate_error(trials, q, alpha):.2%} error with probability 0.999",
    )


def _sizes(sizes: Indices, count: int, q: float, alpha: float, most: int | None) -> Check:
    """Sizes of logical batches against the binomial distribution, in bins; empty draws are a bin where expected."""
    claim = "sizes of logical batches vary as those of Poisson draws do, empty ones included"
    if q == 1:
        full = min(count, most or count)
        return Check(
            code="sampling-sizes",
            part="sampling",
            claim=claim,
            measured="full batches",
            passed=bool((sizes == full).all()),
            sample_size=len(sizes),
            power="every case",
        )
    if most is not None and int(sizes.max()) > most:
        said = f"one of {int(sizes.max())} records, at most {most} are charged"
        return Check(
            code="sampling-sizes",
            part="sampling",
            claim=claim,
            measured=said,
            passed=False,
            sample_size=len(sizes),
            power="every case",
        )
    bins = int(min(12, max(2, len(sizes) // 40)))
    edges = np.unique(stats.binom.ppf(np.arange(1, bins) / bins, count, q).astype(np.int64))
    edges = np.unique(np.concatenate([[0], edges])) if (1 - q) ** count * len(sizes) >= _LEAST_EXPECTED else edges
    if most is not None:  # what is cut lies in the last bin, where it would have been
        edges = np.unique(np.minimum(edges, most - 1))
    cumulative = np.concatenate([[0.0], stats.binom.cdf(edges, count, q), [1.0]])
    chances = np.diff(cumulative)
    found = np.bincount(np.searchsorted(edges, sizes, side="left"), minlength=len(chances))
    keep = chances * len(sizes) >= 5
    found = np.append(found[keep], found[~keep].sum())
    chances = np.append(chances[keep], chances[~keep].sum())
    if chances[-1] * len(sizes) < 5:  # what no bin of its own is expected for joins the last one
        found, chances = np.append(found[:-2], found[-2:].sum()), np.append(chances[:-2], chances[-2:].sum())
    expected = chances * len(sizes)
    statistic = float(((found - expected) ** 2 / expected).sum())
    p = float(stats.chi2.sf(statistic, max(1, len(expected) - 1)))
    spread = float(np.var(sizes)) / (count * q * (1 - q))
    return Check(
        code="sampling-sizes",
        part="sampling",
        claim=claim,
        measured=f"variance of the sizes {spread:.3g} times that of Poisson draws; {int((sizes == 0).sum())} empty",
        passed=p >= alpha,
        sample_size=len(sizes),
        statistic=statistic,
        p_value=p,
        false_alarm=alpha,
        power="fixed sizes, caps, dropped empty draws",
    )


def _inclusion(sets: Sequence[Indices], count: int, q: float, alpha: float) -> Check:
    """How often each record takes part: neither more nor less alike than chance makes it."""
    claim = "records take part equally often, up to chance"
    steps = len(sets)
    joined = np.concatenate(sets)
    counts = np.bincount(joined[(joined >= 0) & (joined < count)], minlength=count)
    if q == 1:
        return Check(
            code="sampling-inclusion",
            part="sampling",
            claim=claim,
            measured="full batches",
            passed=bool((counts == steps).all()),
            sample_size=count,
            power="every case",
        )
    measured = float(joined.size) / (steps * count)
    rate = min(max(measured, 1e-12), 1 - 1e-12)
    groups = int(min(_GROUPS, count, max(2, steps * count * q // 50)))
    pooled = np.array([part.sum() for part in np.array_split(counts, groups)], dtype=np.float64)
    members = np.array([len(part) for part in np.array_split(counts, groups)], dtype=np.float64)
    statistic = float(((pooled - members * steps * rate) ** 2 / (members * steps * rate * (1 - rate))).sum())
    p_groups = st.two_sided(float(stats.chi2.cdf(statistic, groups - 1)), float(stats.chi2.sf(statistic, groups - 1)))
    most, least = int(counts.max()), int(counts.min())
    p_most = count * float(stats.binom.sf(most - 1, steps, max(q, rate)))
    p_least = count * float(stats.binom.cdf(least, steps, min(q, rate)))
    p = min(1.0, 3 * min(p_groups, p_most, p_least))
    return Check(
        code="sampling-inclusion",
        part="sampling",
        claim=claim,
        measured=f"from {least} to {most} of {steps} steps; χ² over {groups} groups {statistic:.1f}",
        passed=p >= alpha,
        sample_size=int(joined.size),
        statistic=statistic,
        p_value=p,
        false_alarm=alpha,
        power="records left out or preferred; records that take turns (shuffling)",
    )


def _overlaps(sets: Sequence[Indices], count: int, q: float, alpha: float) -> Check:
    """Records in common of steps 1 and 2, 3 and 4, …: binomial. Steps of one shuffled pass have none."""
    pairs = list(zip(sets[::2], sets[1::2], strict=False))
    common = sum(len(np.intersect1d(one, other)) for one, other in pairs)
    trials = len(pairs) * count
    p = st.count_p(common, trials, q * q)
    return Check(
        code="sampling-overlaps",
        part="sampling",
        claim="draws of different steps are independent",
        measured=f"{common} records in common of {len(pairs)} pairs of steps, {trials * q * q:.0f} expected",
        passed=p >= alpha,
        sample_size=trials,
        statistic=float(common),
        p_value=p,
        false_alarm=alpha,
        power="every error"
        if q == 1
        else f"{st.smallest_rate_error(trials, q * q, alpha):.1%} more or fewer in common",
    )


def _neighbours(sets: Sequence[Indices], count: int, pair: float, alpha: float) -> Check:
    """Records 2k and 2k + 1 in one draw, and records k and k + N/2: binomial. Blocks come together."""
    half = count // 2
    near = far = 0
    for draw in sets:
        member = np.zeros(count, dtype=np.bool_)
        member[draw[(draw >= 0) & (draw < count)]] = True
        near += int((member[0 : 2 * half : 2] & member[1 : 2 * half : 2]).sum())
        far += int((member[:half] & member[half : 2 * half]).sum())
    trials = len(sets) * half
    p = min(1.0, 2 * min(st.count_p(near, trials, pair), st.count_p(far, trials, pair))) if trials else 1.0
    return Check(
        code="sampling-neighbours",
        part="sampling",
        claim="records enter a draw independently of each other",
        measured=f"{near} neighbours drawn together, {far} far apart, {trials * pair:.0f} of each expected",
        passed=p >= alpha,
        sample_size=trials,
        statistic=float(near),
        p_value=p,
        false_alarm=alpha,
        power="blocks of records that come together",
    )


def _repeats(sets: Sequence[Indices], count: int, q: float, alpha: float) -> Check:
    """The same draw again. Two Poisson draws are equal with probability (q² + (1 − q)²)^N."""
    claim = "no draw comes again"
    chance = math.exp(count * math.log(q * q + (1 - q) ** 2)) * len(sets) ** 2 / 2 if q < 1 else 1.0
    if chance > alpha / 10:
        return Check(
            code="sampling-repeats",
            part="sampling",
            claim=claim,
            measured="draws are too small to tell",
            passed=True,
            sample_size=0,
        )
    found = len(sets) - len({np.sort(draw).tobytes() for draw in sets})
    return Check(
        code="sampling-repeats",
        part="sampling",
        claim=claim,
        measured=f"{found} draws came before",
        passed=found == 0,
        sample_size=len(sets),
        statistic=float(found),
        false_alarm=chance,
        power="every case",
    )
