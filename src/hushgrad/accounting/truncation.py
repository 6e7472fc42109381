"""Poisson sampling that is cut to a largest batch, as compositions of plain Poisson-sampled steps.

A step draws each record with probability q, and keeps a uniformly random B of them where more were drawn. Let S be what
is drawn of the n <= N records that both neighbours have; its law is the same for both. As long as |S| < B nothing is
cut, with or without the differing record x: an ordinary Poisson-sampled step. For the rest there are two bounds.

*Displaced.* Let it be known that |S| >= B, and which B of the n records would be kept without x, R, in an order: a
uniform one, whatever |S| is. With x, with probability r, x takes the place of the first of R, or else nothing changes:
a shift of at most 2C, so a Poisson-sampled step with half the noise multiplier and the rate r <= q. Of |S| = s records
and x, x is kept with probability B / (s + 1), so r = q E[B / (|S| + 1) | |S| >= B]; with P(|S| = s) / (s + 1) =
P(S' = s + 1) / ((n + 1) q), where S' is binomial of n + 1 records,

    r = B / (n + 1) · P(S' >= B + 1) / P(|S| >= B),

which falls with n; of N records, n is N − 1 or N. Sharp where many steps are cut.

*Crowded.* Let only the fact that |S| >= B − 1 be known, and a = P(|S| = B − 1 | |S| >= B − 1). By symmetry what is kept
is a uniform set R of B − 1 of the n records, with or without x, or a uniform set T of B of them:

                 R, without x        R, with x         T
    without x    a                   0                 1 − a
    with x       a(1 − q)            c <= q            the rest, at least (1 − a)(1 − q)

Let R or T, whichever it is, be known. Which it is has a likelihood ratio of at least 1 − q and at most 1 − q + q/a: a
pure loss. Given R, x shifts the sum by at most C, with a probability of at most q / (a(1 − q) + q): a Poisson-sampled
step with that rate and all of the noise. Given T nothing is lost. Sharp where cuts are rare: a record that comes where
a step is full then hides behind the many more draws that were one record short of it.

Whether a step is of this second kind does not depend on x, so that it is dominated by a mixture in which the coin is
seen. Of T steps a number K ~ Binomial(T, p) is of the second kind, and δ(ε) is the mean over K of δ_K(ε), that of T − K
steps of the first kind and K of the second. A crowded step costs more than an ordinary one, so that δ_k grows with k. A
displaced one may cost less: then K lies in one of some cells from l to u, and for a cell T − l steps of the first kind
and u of the second are charged. Of a dearer kind K may be rounded up to the rungs k_0 < k_1 < … of a ladder whose last
one it passes with a negligible probability:

    δ(ε) <= P(K <= k_0) δ_{k_0}(ε) + P(k_0 < K <= k_1) δ_{k_1}(ε) + … + P(K > last).

An accountant gives ε at a δ and not the reverse. So δ is shared out, Σ P_i δ_i + P(K > last) = δ, and the largest of
the rungs' ε(δ_i) holds. How it is shared out makes the result sharper or looser, never wrong.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

from hushgrad.accounting.composition import NormalForm, Sampled

_NEGLIGIBLE = 1e-4
"""What part of δ the chance of passing the last rung may take."""

_FIRST, _NEXT = 0.02, 1e-3
"""How likely it may be to pass the first rung, and each later one once the one before it was passed."""

_FREE, _AMPLE = 1e-4, 100.0
"""What part of δ a rung may take in any case; and a share, in units of δ, that needs no search for a better one."""

_SHARP = 1.005
"""An ε this close to that of steps that are never cut needs no second bound."""

_FEW = 30.0
"""Where more cut steps than these are expected, losses that add up are worse than places that are taken."""

_LARGEST_DELTA = 0.5
_MARGIN = 1 + 1e-8  # for the rounding of tails of the binomial distribution


@dataclass(frozen=True, slots=True)
class CutStep:
    """A step that may be cut: how likely it is, and what it costs.

    It costs what a Poisson-sampled step with `rate` and `noise_multiplier` costs, and a loss of at most `pure` with it.
    `probability` is at most that, and `least` at least; `is_dearer` says that it costs no less than a step that is not
    cut.
    """

    probability: float
    rate: float
    noise_multiplier: float
    pure: float
    least: float = 0.0
    is_dearer: bool = True


@dataclass(frozen=True, slots=True)
class Rung:
    """What is released where K is at most that of the rung and above the one before, and how likely that is.

    ε of the rung is ε of `form` and `pure` together.
    """

    form: NormalForm
    pure: float
    probability: float


@lru_cache(maxsize=256)
def displaced(rate: float, noise_multiplier: float, population: int, max_batch_size: int) -> CutStep:
    """Return the steps of the second kind if a record takes another one's place."""
    from scipy.stats import binom

    probability = float(binom.sf(max_batch_size - 1, population, rate)) * _MARGIN
    least = float(binom.sf(max_batch_size - 1, population - 1, rate)) / _MARGIN
    kept = rate
    if least > 0:
        share = float(binom.sf(max_batch_size, population, rate)) / least
        kept = min(rate, max_batch_size / population * share * _MARGIN)
    return CutStep(min(1.0, probability), kept, noise_multiplier / 2, 0.0, least, is_dearer=kept == rate)


@lru_cache(maxsize=256)
def crowded(rate: float, noise_multiplier: float, population: int, max_batch_size: int) -> CutStep | None:
    """Return the steps of the second kind if a full step is compared with those one record short; None if none is."""
    from scipy.stats import binom

    probability = float(binom.sf(max_batch_size - 2, population, rate))
    if probability == 0:
        return CutStep(0.0, rate, noise_multiplier, 0.0)
    # With more records in common there are more draws beyond any size: N stands for n < N.
    one_short = float(binom.pmf(max_batch_size - 1, population, rate)) / probability / _MARGIN**2
    if one_short < rate:
        return None
    pure = max(math.log1p(rate / one_short - rate), -math.log1p(-rate))
    crowded_rate = rate / (one_short * (1 - rate) + rate)
    return CutStep(min(1.0, probability * _MARGIN), crowded_rate, noise_multiplier, pure)


def epsilon_with_truncation(form: NormalForm, delta: float, epsilon: Callable[[NormalForm, float], float]) -> float:
    """Return an ε that holds for `form` at `delta`, from `epsilon`, which computes it for plain Poisson-sampled steps.

    Guarantee: an upper bound, as `epsilon` is one: the rungs' shares of δ, weighted by their probabilities, and the
    chance to pass the last rung sum to at most `delta`.
    """
    found = math.inf
    least = epsilon(as_if_never_cut(form), delta)
    for kinds in cut_steps(form):
        if found > least * _SHARP:
            found = min(found, _with(kinds, form, delta, epsilon))
    return found


def least_with_truncation(form: NormalForm, delta: float, least: Callable[[NormalForm, float], float]) -> float:
    """Return an ε below which `form` does not hold at `delta`, from `least`, which computes it for plain steps.

    Guarantee: a lower bound, as `least` is one. Unless some step is cut, which has a probability of at most τ under
    either neighbour, all is as without truncation, so that δ(ε) is at least δ of plain steps less (1 + exp(ε)) τ. Where
    cuts are frequent nothing follows, and truncated steps may cost less than plain ones.
    """
    from scipy.stats import binom

    cut = [count * float(binom.sf(most, population + 1, rate)) for rate, _, population, most, count in form.truncated]
    plain, tau = as_if_never_cut(form), math.fsum(cut) * _MARGIN
    found = least(plain, delta)
    if tau == 0 or found == 0:
        return found
    more = delta + (1 + math.exp(min(found, 700.0))) * tau
    return min(found, least(plain, more)) if more < 1 else 0.0


def _with(
    kinds: Sequence[CutStep], form: NormalForm, delta: float, epsilon: Callable[[NormalForm, float], float]
) -> float:
    rungs, beyond = ladder(form, kinds, delta)
    shares = shares_of_delta(rungs, delta - beyond, epsilon)
    return max(_epsilon_of(rung, share, epsilon) for rung, share in zip(rungs, shares, strict=True))


def cut_steps(form: NormalForm) -> list[list[CutStep]]:
    """Return the second kind of each truncated step, by each of the bounds that may be the sharper one."""
    rare, steps = [crowded(*part[:4]) for part in form.truncated], [count for *_, count in form.truncated]
    found = [kind for kind in rare if kind is not None]
    expected = sum(kind.probability * count for kind, count in zip(found, steps, strict=False))
    always = [displaced(*part[:4]) for part in form.truncated]
    if len(found) == len(rare) and expected < _FEW and max(kind.pure for kind in found) < 1:
        return [found, always]
    return [always]


def ladder(form: NormalForm, kinds: Sequence[CutStep], delta: float) -> tuple[list[Rung], float]:
    """Return the rungs, in order, and the probability to pass the last one, at most a ten-thousandth of `delta`.

    `kinds` holds the second kind of each of the form's truncated steps.

    Guarantee: the probabilities are upper bounds.
    """
    from scipy.stats import binom

    total = sum(count for *_, count in form.truncated)
    # Of different events the likeliest to be cut stands for all: K is then only larger.
    likeliest = max(kind.probability for kind in kinds)

    def passes(k: int) -> float:
        return min(1.0, float(binom.sf(k, total, likeliest)) * _MARGIN) if k < total else 0.0

    if len(form.truncated) == 1 and not kinds[0].is_dearer:
        return _cells(form, kinds[0], delta, passes)
    rungs: list[Rung] = []
    before, allowed = 1.0, _FIRST
    while before > _NEGLIGIBLE * delta:
        k = _smallest(total, passes, max(allowed, 0.5 * _NEGLIGIBLE * delta))
        after = passes(k)
        pure = k * max(kind.pure for kind in kinds)
        rungs.append(Rung(_with_second_kind(form, kinds, k, fewest=k), pure, before - after / _MARGIN**2))
        before, allowed = after, after * _NEXT
    return rungs, before


def _cells(form: NormalForm, kind: CutStep, delta: float, passes: Callable[[int], float]) -> tuple[list[Rung], float]:
    """Return the ladder of one event whose steps of the second kind may cost less: a middle cell, and those beside it.

    A cell has as many steps of either kind as K may leave there. Its probability is the larger one for the two sizes of
    the data set that neighbours may have.
    """
    from scipy.stats import binom

    total = form.truncated[0][4]

    def falls_short(k: int) -> float:
        return min(1.0, float(binom.cdf(k - 1, total, kind.least)) * _MARGIN) if k > 0 else 0.0

    def missed_by(k: int) -> float:
        return falls_short(total - k)

    least, most = 0.4 * _NEGLIGIBLE * delta, _FIRST
    high, low = _smallest(total, passes, most), total - _smallest(total, missed_by, most)
    rungs = [Rung(_with_second_kind(form, [kind], high, fewest=min(low, high)), 0.0, 1.0)]
    while (before := passes(high)) > least:
        start, high = high + 1, _smallest(total, passes, max(before * _NEXT, least))
        rungs.append(Rung(_with_second_kind(form, [kind], high, fewest=start), 0.0, before))
    while (before := falls_short(low)) > least:
        end, low = low - 1, total - _smallest(total, missed_by, max(before * _NEXT, least))
        rungs.append(Rung(_with_second_kind(form, [kind], end, fewest=low), 0.0, before))
    return rungs, passes(high) + falls_short(low)


def _smallest(total: int, passes: Callable[[int], float], most: float) -> int:
    """Return the smallest k that is passed with a probability of at most `most`; `total` is not passed at all."""
    low, high = -1, total
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if passes(middle) <= most else (middle, high)
    return high


def _with_second_kind(form: NormalForm, kinds: Sequence[CutStep], number: int, fewest: int) -> NormalForm:
    """Return `form` with `number` of its truncated steps of the second kind and the others plain.

    `fewest` of one event are surely not plain; of different ones all are kept as plain, too.
    """
    steps: dict[tuple[float, float], int] = {(rate, noise): count for rate, noise, count in form.sampled}

    def add(rate: float, noise: float, count: int) -> None:
        if count:
            steps[rate, noise] = steps.get((rate, noise), 0) + count

    is_one_event = len(form.truncated) == 1
    for rate, noise, _, _, count in form.truncated:
        add(rate, noise, count - fewest if is_one_event else count)
    # Which of different events were of the second kind is not known: the dearest that there are come on top of all.
    add(max(kind.rate for kind in kinds), min(kind.noise_multiplier for kind in kinds), number)
    sampled: tuple[Sampled, ...] = tuple(sorted((*key, count) for key, count in steps.items()))
    return replace(form, sampled=sampled, truncated=())


def shares_of_delta(rungs: Sequence[Rung], delta: float, epsilon: Callable[[NormalForm, float], float]) -> list[float]:
    """Return a δ for each rung, Σ probability · share <= `delta`, so that all rungs have about the same ε.

    Near an ε the logarithm of δ is almost linear, with a slope that is read from two values of the first rung.
    """
    if len(rungs) == 1:
        return [min(delta / rungs[0].probability, _LARGEST_DELTA)]
    shares, left, slope, first = [], delta, 0.0, 0.0
    for rung in rungs[1:]:
        share = _FREE * delta / rung.probability
        if share < _AMPLE * delta:
            if not slope:
                first = _epsilon_of(rungs[0], delta, epsilon)
                slope = math.log(2) / max(first - _epsilon_of(rungs[0], min(2 * delta, 0.9), epsilon), 1e-12)
            above = slope * (_epsilon_of(rung, delta, epsilon) - first)
            share = max(share, 1.01 * delta * math.exp(min(above, 300.0)))
        share = min(share, 0.25 * left / rung.probability, _LARGEST_DELTA)
        shares.append(share)
        left -= rung.probability * share
    return [min(left / rungs[0].probability, _LARGEST_DELTA), *shares]


def _epsilon_of(rung: Rung, delta: float, epsilon: Callable[[NormalForm, float], float]) -> float:
    return epsilon(rung.form, delta) + rung.pure


def as_if_never_cut(form: NormalForm) -> NormalForm:
    """Return `form` with truncated steps as plain ones, which is what they cost about where cuts are rare."""
    steps: dict[tuple[float, float], int] = {(rate, noise): count for rate, noise, count in form.sampled}
    for rate, noise, _, _, count in form.truncated:
        steps[rate, noise] = steps.get((rate, noise), 0) + count
    return replace(form, sampled=tuple(sorted((*key, count) for key, count in steps.items())), truncated=())
