"""Privacy loss distributions, composed by `dp_accounting`, on a grid that fits the composition.

`hushgrad.accounting.pld.discretization` gives the distribution of one step, and `dp_accounting` composes by FFT.
`dp_accounting`'s own grid of 1e-4 is too coarse where one step loses less than that, and needlessly fine where the loss
is large; here the grid follows the composition.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hushgrad.accounting.composition import NormalForm, Sampled, pooled
from hushgrad.accounting.gaussian import gaussian_epsilon
from hushgrad.accounting.pld.discretization import REACH, one_step, one_step_of_fixed_size, privacy_loss
from hushgrad.errors import AccountingError
from hushgrad.extras import needs_extra

with needs_extra("cross-check", "accountant 'pld'"):
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

DEFAULT_INTERVAL = 1e-4
POINTS_OF_ONE_STEP = 1 << 18
POINTS_OF_ALL_STEPS = 1 << 21
MOST_GROUPS = 32

FFT_ERROR_OF_A_STEP = 1e-16
"""What the FFT's rounding may take from δ, for each step. Five times what was measured against exact values up to 10⁷
steps; it is subtracted from δ."""

_LARGEST_NOISE_MULTIPLIER = 1e6
_INTERVALS_PER_DEVIATION = 64
_SMALLEST_INTERVAL = 1e-9


def pld_epsilon(form: NormalForm, delta: float) -> float:
    """Return ε at `delta` for what `form` releases, by composing privacy loss distributions.

    Guarantee: unsampled Gaussian releases alone are charged by their exact curve. With sampled ones, the result is an
    upper bound, with an allowance in δ for the rounding of the FFT; more than `MOST_GROUPS` different sampled events
    are pooled on the private side (a larger rate, a smaller noise multiplier).

    Raises `AccountingError` where that allowance would be more than half of `delta`, and for random allocation.
    """
    if form.noiseless:
        return math.inf
    if form.allocated:
        raise AccountingError(
            "this accountant has no distribution for passes over random batches (balls in bins)",
            where="accountant 'pld'",
            cure="Use accountant='saddle-point', or 'rdp', an upper bound without amplification",
        )
    if not form.sampled and not form.fixed_size:
        return gaussian_epsilon(form.gaussian_precision, delta)
    drawn = math.fsum(rate * count for rate, _, count in (*form.sampled, *form.fixed_size))
    if form.gaussian_precision == 0 and drawn <= delta:
        # The record is never drawn, except with this probability.
        return 0.0
    allowance = FFT_ERROR_OF_A_STEP * sum(count for _, _, count in (*form.sampled, *form.fixed_size))
    if allowance > delta / 2:
        raise AccountingError(
            f"at delta = {delta:g} this accountant is correct for up to {delta / 2 / FFT_ERROR_OF_A_STEP:.3g} steps, "
            f"because its rounding grows with them",
            where="accountant 'pld'",
            cure="Use accountant='rdp', a valid upper bound, or a larger delta",
        )
    # Less noise than was drawn is an upper bound; a noise multiplier beyond this range changes no digit that matters.
    sampled = tuple((rate, min(noise, _LARGEST_NOISE_MULTIPLIER), count) for rate, noise, count in form.sampled)
    # Losses beyond 709 overflow in exp, in places where infinity is the right limit.
    with np.errstate(over="ignore", divide="ignore", invalid="ignore"):
        value = _sampled_epsilon(
            pooled(sampled, MOST_GROUPS),
            form.gaussian_precision,
            delta - allowance,
            pooled(form.fixed_size, MOST_GROUPS),
        )
    # Sampling never costs more than no sampling; near ε = 709 the overflow can lose that.
    unsampled = form.gaussian_precision + math.fsum(
        count / noise**2 for _, noise, count in (*sampled, *form.fixed_size)
    )
    return min(value, gaussian_epsilon(unsampled, delta))


@lru_cache(maxsize=256)
def _sampled_epsilon(
    sampled: tuple[Sampled, ...], precision: float, delta: float, fixed_size: tuple[Sampled, ...]
) -> float:
    interval = grid_interval((*sampled, *fixed_size), precision)
    parts = [_composed(rate, noise, count, interval) for rate, noise, count in sampled]
    for rate, noise, count in fixed_size:
        step = one_step_of_fixed_size(rate, noise, interval)
        parts.append(step if count == 1 else step.self_compose(count))
    if precision:
        parts.append(_one_step(1.0, 1 / math.sqrt(precision), interval))
    total = parts[0]
    for part in parts[1:]:
        total = total.compose(part)
    return max(0.0, float(total.get_epsilon_for_delta(delta)))


@lru_cache(maxsize=64)
def _one_step(rate: float, noise_multiplier: float, interval: float) -> PrivacyLossDistribution:
    return one_step(rate, noise_multiplier, interval)


@lru_cache(maxsize=64)
def _composed(rate: float, noise_multiplier: float, count: int, interval: float) -> PrivacyLossDistribution:
    step = _one_step(rate, noise_multiplier, interval)
    return step if count == 1 else step.self_compose(count)


def grid_interval(sampled: Sequence[Sampled], precision: float) -> float:
    """Return the interval of the grid of privacy losses: 1e-4 times a power of two.

    As fine as 1e-4 or 1/64 of one step's standard deviation, whichever is smaller, unless arrays would grow beyond
    `POINTS_OF_ONE_STEP` and `POINTS_OF_ALL_STEPS`. Powers of two so that a growing count finds one-step distributions
    again.
    """
    losses = [_loss_of_one_step(rate, noise, count) for rate, noise, count in sampled]
    if precision:
        losses.append(_loss_of_one_step(1.0, 1 / math.sqrt(precision), 1))
    steps = sum(count for _, _, count in sampled)
    deviation = math.sqrt(math.fsum(loss.variance for loss in losses) / steps)
    affordable = max(
        max(loss.extent_of_one for loss in losses) / POINTS_OF_ONE_STEP,
        math.fsum(loss.extent_of_all for loss in losses) / POINTS_OF_ALL_STEPS,
    )
    wanted = max(min(DEFAULT_INTERVAL, deviation / _INTERVALS_PER_DEVIATION), affordable, _SMALLEST_INTERVAL)
    return DEFAULT_INTERVAL * 2.0 ** math.ceil(math.log2(wanted / DEFAULT_INTERVAL))


@dataclass(frozen=True, slots=True)
class _Loss:
    """The privacy loss of `count` equal steps: its variance, and the extents of what has to be stored."""

    variance: float
    extent_of_one: float
    extent_of_all: float


@lru_cache(maxsize=256)
def _loss_of_one_step(rate: float, noise_multiplier: float, count: int) -> _Loss:
    x = np.linspace(-REACH * noise_multiplier, 1 + REACH * noise_multiplier, 4001)
    loss = privacy_loss(x, rate, noise_multiplier)
    weight = (1 - rate) * np.exp(-((x / noise_multiplier) ** 2) / 2)
    weight += rate * np.exp(-(((x - 1) / noise_multiplier) ** 2) / 2)
    weight /= weight.sum()
    centred = loss - float(weight @ loss)
    extent = float(loss[-1] - loss[0])
    # The extent that the Chernoff bound of dp_accounting leaves: orders up to 20 over the extent, tails of 1e-15.
    orders = np.arange(1, 21) / extent
    bounds = [(count * np.log(np.exp(np.outer(sign * orders, centred)) @ weight) + 36) / orders for sign in (1, -1)]
    whole = min(float(bounds[0].min() + bounds[1].min()), count * extent)
    return _Loss(count * float(weight @ centred**2), extent, whole)
