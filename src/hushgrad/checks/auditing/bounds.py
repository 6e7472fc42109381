"""Lower bounds on ε at a confidence, from attacks.

A claim is rejected if data as extreme as those seen would have a probability below 1 − confidence under it; the bound
is the largest rejected ε. Per-step and f-DP bounds read the trade-off curve of the mechanism from its own accountant
(exactly, for the Gaussian mechanism), not an approximation of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray
from scipy import stats
from scipy.optimize import brentq
from scipy.special import ndtr, ndtri

from hushgrad.accounting.accountants import epsilon, epsilon_bounds
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.gaussian import gaussian_epsilon
from hushgrad.accounting.privacy_curve import PrivacyCurve
from hushgrad.accounting.risk import delta as upper_delta
from hushgrad.arguments import open_unit_interval, whole_number
from hushgrad.errors import InvalidArgumentError

Scores = NDArray[np.float64]
_LARGEST_EPSILON = 200.0

OWN_CURVE = "one run, own curve"
_LEAST_NOISE, _MOST_NOISE, _CLOSE = 2.0**-5, 2.0**7, 1.02
_LINES, _TAIL = 24, 1e-9


@dataclass(frozen=True, slots=True)
class AuditBound:
    """A lower bound on ε.

    `epsilon` holds at `delta` with probability `confidence`: a mechanism whose true ε were smaller would have given
    such results with a probability of at most 1 − confidence. `method` says which audit, `trials` on how many
    observations. `mu` is the bound in Gaussian differential privacy, where the method gives one; `statistic` what it
    was computed from: the t statistic, or the number of right guesses.
    """

    method: str
    epsilon: float
    delta: float
    confidence: float
    trials: int
    mu: float | None = None
    statistic: float | None = None

    def rejects(self, claimed_epsilon: float) -> bool:
        """Whether the claim cannot be true, at this confidence."""
        return self.epsilon > claimed_epsilon

    def __str__(self) -> str:
        """Return the bound as a sentence."""
        return (
            f"epsilon is at least {self.epsilon:.4g} at delta = {self.delta:g}, with confidence {self.confidence:g} "
            f"({self.method}, {self.trials} observations)"
        )


def white_box_bound(present: Scores, absent: Scores, *, delta: float, confidence: float = 0.99) -> AuditBound:
    """Return the bound for one Gaussian step from scores with a canary present and absent (arXiv:2302.07956).

    The scores of a per-step white-box attack are the projections of updates on the canary's gradient: the
    likelihood-ratio test of the Gaussian mechanism, N(μ, 1) against N(0, 1) in units of the noise. μ = 1/σ is bounded
    from below by the non-central t distribution of the two-sample statistic, exactly, and ε at δ is read from the
    accountant's curve for μ.

    Args:
        present: scores of independent runs with the canary, at least 2.
        absent: scores of independent runs without it, at least 2.
        delta: δ at which ε is stated.
        confidence: the probability with which the bound holds.

    Guarantee: for a Gaussian mechanism the bound is at most the true ε with probability `confidence`.
    """
    _confidence(confidence)
    open_unit_interval("delta", delta)
    cure = "Run more games, and leave out none"
    one, other = finite_scores("present", present, cure=cure), finite_scores("absent", absent, cure=cure)
    n, m = len(one), len(other)
    freedom = n + m - 2
    pooled = math.sqrt((((one - one.mean()) ** 2).sum() + ((other - other.mean()) ** 2).sum()) / freedom)
    if pooled == 0:
        mu = math.inf if one.mean() != other.mean() else 0.0
        return AuditBound("per-step white-box", mu, delta, confidence, n + m, mu)
    weight = math.sqrt(n * m / (n + m))
    statistic = abs(float(one.mean() - other.mean())) / pooled * weight
    return white_box_bound_of(statistic, n, m, delta=delta, confidence=confidence)


def white_box_bound_of(
    statistic: float, present: int, absent: int, *, delta: float, confidence: float = 0.99
) -> AuditBound:
    """Return `white_box_bound` from the t statistic of the scores and their two numbers."""
    _confidence(confidence)
    open_unit_interval("delta", delta)
    n = whole_number("present", present, minimum=2)
    m = whole_number("absent", absent, minimum=2)
    freedom, weight = n + m - 2, math.sqrt(n * m / (n + m))
    mu = _least_noncentrality(statistic, freedom, 1 - confidence) / weight
    epsilon = gaussian_epsilon(mu * mu, delta) if mu > 0 else 0.0
    return AuditBound("per-step white-box", epsilon, delta, confidence, n + m, mu, statistic)


def _least_noncentrality(statistic: float, freedom: int, alpha: float) -> float:
    """Return the largest non-centrality at which `statistic` or more has probability at most `alpha`; 0 if none has."""

    def excess(noncentrality: float) -> float:
        return _tail(statistic, freedom, noncentrality) - alpha

    if excess(0.0) >= 0:
        return 0.0
    high = statistic
    while excess(high) < 0:
        high *= 1.5
    return float(brentq(excess, 0.0, high, rtol=1e-10))


def _tail(statistic: float, freedom: int, noncentrality: float) -> float:
    """P(T >= statistic) of the non-central t distribution; its normal limit where scipy's series ends."""
    if freedom < 500 and noncentrality < 30:
        value = float(stats.nct.sf(statistic, freedom, noncentrality))
        if math.isfinite(value):
            return value
    # The numerator of T − statistic · s is nearly normal, s of mean 1 − 1/(4f) and variance 1/(2f).
    spread = math.sqrt(1 + statistic * statistic / (2 * freedom))
    return float(ndtr((noncentrality - statistic * (1 - 1 / (4 * freedom))) / spread))


def one_run_bound(guesses: int, right: int, canaries: int, *, delta: float, confidence: float = 0.99) -> AuditBound:
    """Return the bound of one training run with many canaries, each in or out by a coin (arXiv:2305.08846).

    Under (ε, δ)-DP the number of right ones among r guesses is at most Binomial(r, e^ε/(1 + e^ε)), up to a term in δ
    (their theorem 5.2, with α = Σ over the tail as in appendix D).

    Args:
        guesses: how many canaries a guess was made for (in or out); the others were abstained from.
        right: how many guesses were right.
        canaries: how many canaries there were.
        delta: δ at which ε is stated.
        confidence: the probability with which the bound holds.
    """
    r, v, m = _counts(guesses, right, canaries, delta, confidence)

    def p_value(epsilon: float) -> float:
        q = 1 / (1 + math.exp(-epsilon))
        base = float(stats.binom.sf(v - 1, r, q))
        # The δ term: max over i of (P[v − i <= B < v]) / i, times 2mδ.
        i = np.arange(1, v + 1)
        mass = stats.binom.cdf(v - 1, r, q) - stats.binom.cdf(v - 1 - i, r, q)
        worst = float((mass / i).max()) if len(i) else 0.0
        return base + 2 * m * delta * worst

    return AuditBound("one run", _largest_rejected(p_value, 1 - confidence), delta, confidence, r, None, v)


def one_run_gaussian_bound(
    guesses: int, right: int, canaries: int, *, delta: float, confidence: float = 0.99
) -> AuditBound:
    """Return the bound of one run through f-DP, for claims of Gaussian differential privacy (arXiv:2410.22235).

    The number of right guesses is bounded by the recursion of their algorithm 3 with the trade-off curve of μ-GDP,
    which is the accountant's own for Gaussian releases; ε at δ follows from the largest rejected μ.
    """
    r, v, m = _counts(guesses, right, canaries, delta, confidence)

    def is_rejected(mu: float) -> bool:
        return _rejects(lambda mass: float(ndtr(ndtri(mass) - mu)), r, v, m, 1 - confidence)

    low, high = 0.0, 1.0
    if not is_rejected(1e-9):
        return AuditBound("one run, f-DP", 0.0, delta, confidence, r, 0.0, v)
    while is_rejected(high) and high < 64:
        low, high = high, 2 * high
    for _ in range(40):
        middle = (low + high) / 2
        low, high = (middle, high) if is_rejected(middle) else (low, middle)
    return AuditBound("one run, f-DP", gaussian_epsilon(low * low, delta), delta, confidence, r, low, v)


def one_run_curve_bound(
    guesses: int,
    right: int,
    canaries: int,
    *,
    plan: Callable[[float], Composition],
    delta: float,
    confidence: float = 0.99,
) -> AuditBound:
    """Return the bound of one run through f-DP with the trade-off curve of what ran (arXiv:2410.22235).

    `one_run_gaussian_bound` compares the guesses with curves of Gaussian privacy, and the curve of a run that drew its
    records by chance is none. Here they are compared with that of the same plan with less or more noise. The bound is ε
    at δ of the plan with the least noise that is rejected: a run of it, or with more noise, would not have been guessed
    so well.

    Args:
        guesses: as in `one_run_bound`.
        right: as in `one_run_bound`.
        canaries: as in `one_run_bound`.
        plan: what ran if all of its noise were multiplied by its argument, > 0; `plan(1)` is what is claimed.
        delta: δ at which ε is stated.
        confidence: the probability with which the bound holds.

    The trade-off curve is bounded from below by lines at some ε, so a rejection is one by the true curve as well.
    """
    r, v, m = _counts(guesses, right, canaries, delta, confidence)

    def is_rejected(times: float) -> bool:
        curve = _curve_of(plan(times))
        return _rejects(
            lambda mass: float(curve.false_negative_rates(np.array([1 - mass]))[0]), r, v, m, 1 - confidence
        )

    if is_rejected(1.0):
        accepted, rejected = 0.5, 1.0
        while accepted > _LEAST_NOISE and is_rejected(accepted):
            accepted, rejected = accepted / 2, accepted
    else:
        accepted, rejected = 1.0, 2.0
        while rejected <= _MOST_NOISE and not is_rejected(rejected):
            accepted, rejected = rejected, 2 * rejected
        if rejected > _MOST_NOISE:
            return AuditBound(OWN_CURVE, 0.0, delta, confidence, r, None, v)
    while rejected / accepted > _CLOSE:
        middle = math.sqrt(accepted * rejected)
        accepted, rejected = (accepted, middle) if is_rejected(middle) else (middle, rejected)
    return AuditBound(OWN_CURVE, epsilon_bounds(plan(rejected), delta).lower, delta, confidence, r, None, v)


def _curve_of(composition: Composition) -> PrivacyCurve:
    end = epsilon(composition, _TAIL)
    return PrivacyCurve.of_delta(partial(upper_delta, composition), np.linspace(0.0, end, _LINES))


def _counts(guesses: int, right: int, canaries: int, delta: float, confidence: float) -> tuple[int, int, int]:
    _confidence(confidence)
    open_unit_interval("delta", delta)
    r = whole_number("guesses", guesses, minimum=1)
    v = whole_number("right", right, minimum=0)
    m = whole_number("canaries", canaries, minimum=1)
    if v > r or r > m:
        raise InvalidArgumentError(
            f"right <= guesses <= canaries must hold, got {v}, {r}, {m}", cure="Count each canary once"
        )
    return r, v, m


def _rejects(needed_by: Callable[[float], float], guesses: int, right: int, canaries: int, alpha: float) -> bool:
    """Whether a trade-off curve gives `right` or more right ones of `guesses` a probability of at most `alpha`.

    If the probability were `alpha`, the trade-off curve would bound from below the mass that the events "i right" need,
    from i = right down to 0: `needed_by` gives f(1 − mass). Where the needed mass exceeds what all guesses have,
    guesses / canaries, it is rejected.
    """
    right_mass = alpha * right / canaries
    wrong_mass = alpha * (guesses - right) / canaries
    for i in range(right - 1, -1, -1):
        needed = max(wrong_mass, needed_by(min(right_mass, 1.0)))
        right_mass += i / (guesses - i) * (needed - wrong_mass)
        wrong_mass = needed
    return right_mass + wrong_mass > guesses / canaries


def _largest_rejected(p_value: Callable[[float], float], alpha: float) -> float:
    if p_value(0.0) >= alpha:
        return 0.0
    if p_value(_LARGEST_EPSILON) < alpha:
        return _LARGEST_EPSILON
    return float(brentq(lambda epsilon: p_value(epsilon) - alpha, 0.0, _LARGEST_EPSILON, xtol=1e-9))


def _confidence(value: float) -> None:
    if not 0.5 < open_unit_interval("confidence", value) < 1:
        raise InvalidArgumentError(f"confidence must be in (0.5, 1), got {value}", cure="Pass a value such as 0.95")


def finite_scores(name: str, values: Scores, *, cure: str) -> Scores:
    """Return scores as a float64 vector.

    Raises `InvalidArgumentError`, with the cure, where they are fewer than two or not all finite.
    """
    found = np.asarray(values, dtype=np.float64).reshape(-1)
    if len(found) < 2 or not np.isfinite(found).all():
        raise InvalidArgumentError(
            f"{name} must hold at least 2 scores, all finite, got {len(found)} scores",
            cure=cure,
        )
    return found
