"""What ε at one δ does not tell: δ at any ε, what an attacker can achieve, and other definitions of privacy.

Everything is read from upper bounds on δ(ε) by the saddle-point accountant (on ε(δ) for steps that may be cut), so each
figure errs on the private side: an attacker's *advantage* and *true-positive rate* are at most what is returned, the
*false-negative rate* at least.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache

import numpy as np
from scipy.optimize import brentq

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.bounds import DeltaBounds
from hushgrad.accounting.composition import Composition, NormalForm, normal_form
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.floating_point import usual_floating_point
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.privacy_curve import PrivacyCurve
from hushgrad.arguments import non_negative_number, open_unit_interval, real_number
from hushgrad.errors import AccountingError, InvalidArgumentError

SMALLEST_DELTA_OF_MU = 1e-10

_POINTS_OF_MU = 24

_DELTAS = (1e-20, 1e-16, 1e-12, 1e-9, 1e-7, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.06, 0.1, 0.15, 0.22, 0.3, 0.4)
_CLOSE = 0.1  # of the logarithm of a δ


@usual_floating_point()
def delta_bounds(composition: Composition, epsilon: float) -> DeltaBounds:
    """Return bounds on the smallest δ at which `composition` is (`epsilon`, δ)-private, `epsilon` >= 0.

    Guarantee: δ(ε) lies between them. Raises as `hushgrad.accounting.epsilon` does.
    """
    from hushgrad.accounting.saddle_point.accountant import delta_bounds as of_form

    at, form = non_negative_number("epsilon", epsilon), _unfiltered(composition)
    if form.noiseless or not form.truncated:
        return of_form(form, at)
    return DeltaBounds(0.0, _delta_of_truncated(composition, at))


def delta(composition: Composition, epsilon: float) -> float:
    """Return a δ at which `composition` is (`epsilon`, δ)-private: the upper one of `delta_bounds`."""
    return delta_bounds(composition, epsilon).upper


def membership_advantage(composition: Composition) -> float:
    """Return the most by which an attacker's true-positive rate can exceed the false-positive rate: δ(0).

    The attacker knows everything but whether one record took part, and sees every released step.

    Guarantee: an upper bound on the advantage of every membership attack, in [0, 1].
    """
    return delta(composition, 0.0)


def false_negative_rate(composition: Composition, false_positive_rate: float) -> float:
    """Return the least false-negative rate of a membership attack with this false-positive rate in (0, 1).

    The trade-off curve of Dong, Roth & Su (2019, arXiv:1905.02383), from δ(ε) by their proposition 2.12:

        f(α) = sup_{ε >= 0} max(0, 1 − δ(ε) − e^ε·α, e^{−ε}(1 − δ(ε) − α)).

    Guarantee: a lower bound on the error of every attack (any ε gives one; the best ε found is used).
    """
    return trade_off_curve(composition, [false_positive_rate])[0]


def true_positive_rate(composition: Composition, false_positive_rate: float) -> float:
    """Return the largest true-positive rate of a membership attack with this false-positive rate.

    Guarantee: an upper bound on the power of every attack.
    """
    return 1 - false_negative_rate(composition, false_positive_rate)


@usual_floating_point()
def trade_off_curve(composition: Composition, rates: Sequence[float]) -> list[float]:
    """Return `false_negative_rate` at each false-positive rate; one δ(ε) serves them all."""
    alphas = [open_unit_interval("false_positive_rate", rate) for rate in rates]
    form = _unfiltered(composition)
    if form.noiseless:
        return [0.0 for _ in alphas]
    if form.empty:
        return [1 - alpha for alpha in alphas]
    if form.truncated:
        return [float(rate) for rate in _curve_of_truncated(composition).false_negative_rates(np.array(alphas))]
    from hushgrad.accounting.trade_off import TradeOff

    curve = TradeOff(form, alphas)
    return [curve.false_negative_rate(alpha) for alpha in alphas]


@usual_floating_point()
def gaussian_mu(composition: Composition, smallest_delta: float = SMALLEST_DELTA_OF_MU) -> float:
    """Return a μ such that `composition` is at least as private as μ-GDP at every δ >= `smallest_delta`.

    For unsampled Gaussian releases it is sqrt(Σ 1/σ²), at every δ. A sampled Gaussian has heavier tails than any
    Gaussian until far out, so that one μ for all δ would be that without sampling; hence the floor.

    Guarantee: an upper bound: at every ε with δ(ε) >= smallest_delta the curve of μ-GDP lies above δ(ε), also between
    the points of the grid (δ falls in ε, so each interval compares its left end with the right end of μ-GDP).
    """
    least = open_unit_interval("smallest_delta", smallest_delta)
    form = _plain(composition)
    if form.noiseless:
        return math.inf
    if form.empty:
        return 0.0
    if not form.is_sampled:
        return math.sqrt(form.gaussian_precision)
    from hushgrad.accounting.saddle_point.accountant import epsilon_bounds

    end = epsilon_bounds(form, least).upper
    unsampled = math.sqrt(form.unsampled_precision)
    if end == 0.0:
        return min(_mu_through(0.0, _delta(form, 0.0)), unsampled)
    grid = np.concatenate(([0.0], end * np.linspace(1 / _POINTS_OF_MU, 1, _POINTS_OF_MU)))
    deltas = [_delta(form, float(epsilon)) for epsilon in grid]
    largest = max(_mu_through(float(right), at) for right, at in zip(grid[1:], deltas[:-1], strict=True))
    return min(largest, unsampled)


def zero_concentrated(composition: Composition) -> float:
    """Return the ρ of zero-concentrated privacy: D_α <= ρα for every order α > 1 (Bun & Steinke, 2016).

    Sampling does not lower it: at large orders the Rényi divergence of a sampled step approaches that of an unsampled
    one, so ρ = Σ 1/(2σ²). It is infinite without noise.
    """
    form = _plain(composition)
    if form.noiseless:
        return math.inf
    return form.unsampled_precision / 2


@usual_floating_point()
def renyi_divergence(composition: Composition, order: int) -> float:
    """Return an upper bound on the Rényi divergence of a whole order >= 2 (Mironov, Talwar & Zhang, 2019)."""
    number = real_number("order", order)
    if number != int(number) or number < 2:
        raise InvalidArgumentError(
            f"must be a whole number >= 2, got {number:g}", where="order", cure="Pass 2 or a greater whole number"
        )
    from hushgrad.accounting.renyi import divergences

    form = _plain(composition)
    form.require_plain("the Rényi divergence")
    if form.noiseless:
        return math.inf
    sampled = (count * float(divergences(rate, noise, (int(number),))[0]) for rate, noise, count in form.sampled)
    return form.gaussian_precision * number / 2 + math.fsum(sampled)


def _unfiltered(composition: Composition) -> NormalForm:
    """Return what δ, and so the power of attacks, is known for: all but an account under a filter."""
    form = normal_form(composition)
    replace(form, truncated=(), fixed_size=(), allocated=()).require_plain("this figure")
    return form


def _curve_of_truncated(composition: Composition) -> PrivacyCurve:
    """Return ε at many δ: of steps that are cut, only ε at a δ is known."""
    return _curve_of(tuple(composition))


@lru_cache(maxsize=8)
def _curve_of(composition: tuple[tuple[Event, int], ...]) -> PrivacyCurve:
    return PrivacyCurve.of_epsilon(composition, np.array(_DELTAS))


def _delta_of_truncated(composition: Composition, at: float) -> float:
    """Return a δ at which ε = `at` holds: the best of the curve's, then a smaller one whose ε is no larger."""
    curve = _curve_of_truncated(composition)
    best, fits = curve.delta(at), curve.epsilons <= at
    if not fits.any() or fits.all():
        return best
    low, high = math.log(float(curve.deltas[~fits].max())), math.log(float(curve.deltas[fits].min()))
    while high - low > _CLOSE:
        middle = (low + high) / 2
        low, high = (low, middle) if epsilon_of(composition, math.exp(middle)) <= at else (middle, high)
    return min(best, math.exp(high))


def _plain(composition: Composition) -> NormalForm:
    form = normal_form(composition)
    form.without_allocation().require_plain("this figure")
    return form


def _delta(form: NormalForm, epsilon: float) -> float:
    from hushgrad.accounting.saddle_point.accountant import delta_bounds as of_form

    return of_form(form, float(epsilon)).upper


def _mu_through(epsilon: float, delta: float) -> float:
    """Return the μ with δ_μ(`epsilon`) = `delta`."""
    target = math.log(delta)
    high = 1.0
    while log_delta(high, epsilon) < target:
        high *= 2
        if high > 1e6:
            raise AccountingError(
                "this composition is less private than mu-GDP for every mu up to 1e6", cure="Use more noise"
            )
    low = 1e-12
    if log_delta(low, epsilon) >= target:
        return low
    return float(brentq(lambda mu: max(log_delta(mu, epsilon), -1e6) - target, low, high, rtol=1e-10)) * (1 + 1e-9)
