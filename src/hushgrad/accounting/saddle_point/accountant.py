"""The saddle-point accountant: ε and δ of compositions of sampled and unsampled Gaussian releases, between two bounds.

`hushgrad.accounting.saddle_point.contour` says how one direction is computed and what its error bound consists of. Here
both directions are taken, ε is found from δ, and what has a closed form is not integrated at all.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import lru_cache

import numpy as np

from hushgrad.accounting import gaussian
from hushgrad.accounting.bounds import DeltaBounds, EpsilonBounds
from hushgrad.accounting.composition import NormalForm
from hushgrad.accounting.gaussian import gaussian_epsilon
from hushgrad.accounting.saddle_point.contour import (
    REACH,
    ROUGH_REACH,
    Contour,
    log_delta_estimate,
    saddle_point,
    saddle_point_of_delta,
)
from hushgrad.accounting.saddle_point.loss_sum import LossSum, Steps, steps_of
from hushgrad.accounting.saddle_point.passes import delta_of_passes, epsilon_of_passes
from hushgrad.accounting.saddle_point.search import DROPPED, FREED, GOOD_ENOUGH, most_of_add, of_direction
from hushgrad.accounting.saddle_point.step_measure import ADD, REMOVE, SampledStep
from hushgrad.errors import AccountingError

DIRECTIONS = (REMOVE, ADD)
LEAST_SAMPLED_NOISE = 0.009
"""Steps with less noise count as unsampled: an upper bound, at ε of ten thousand and more. Calibration tries none."""
LEAST_FIXED_NOISE = 0.1
"""Draws of a fixed size with less noise over 2C (an ε beyond 50) count as unsampled."""

SMALLEST_DELTA = 1e-150
MOST_STEPS = 10**9

_ROUNDING = 2e-8
"""What both bounds give away, relative to ε, for the rounding of everything outside the integral."""

_LARGEST_NOISE = 1e6
_NEGLIGIBLE = 1e-280


def epsilon_bounds(form: NormalForm, delta: float, group_size: int = 1) -> EpsilonBounds:
    """Return bounds on the smallest ε >= 0 at which what `form` releases is (ε, δ)-private in both directions.

    Guarantee: `upper` is an ε that holds, and it is at most `error` above the smallest one.

    `delta` in (0, 1); `group_size` is the number of records that neighbours differ by. Raises `AccountingError` for
    what is out of range: δ below 1e-150, more than 10⁹ sampled steps, or numbers that floating point cannot hold.
    """
    if form.noiseless:
        return EpsilonBounds(math.inf, math.inf)
    if form.empty:
        return EpsilonBounds(0.0, 0.0)
    _require_in_range(form, delta)
    rounded, exact = _sampled_with_noise(form)
    precision = rounded.gaussian_precision * group_size**2
    if rounded.allocated or rounded.fixed_size:
        result = epsilon_of_passes(rounded, delta)
        upper = min(result.upper, gaussian_epsilon(rounded.unsampled_precision, delta))
        return EpsilonBounds(min(result.lower, upper) if exact else 0.0, upper)
    if not rounded.sampled:
        value = gaussian_epsilon(precision, delta)
        return EpsilonBounds(value * (1 - 1e-8) if exact else 0.0, value)
    if precision == 0 and _probability_of_taking_part(rounded, group_size) <= delta:
        return EpsilonBounds(0.0, 0.0)
    if rounded.sampled[0][2] == 1 and len(rounded.sampled) == 1 and precision == 0 and group_size == 1:
        result = _one_step(rounded.sampled[0][0], rounded.sampled[0][1], delta)
    else:
        low, high = _of_both(rounded, precision, group_size, delta)
        result = EpsilonBounds(low * (1 - _ROUNDING), high * (1 + _ROUNDING))
    unsampled = precision + math.fsum((group_size / noise) ** 2 * count for _, noise, count in rounded.sampled)
    upper = min(result.upper, gaussian_epsilon(unsampled, delta))
    return EpsilonBounds(min(result.lower, upper) if exact else 0.0, upper)


def delta_bounds(
    form: NormalForm, epsilon: float, direction: str | None = None, group_size: int = 1, reach: float = REACH
) -> DeltaBounds:
    """Return bounds on δ(`epsilon`), `epsilon` >= 0, in one direction ("remove", "add") or in the worse of both.

    Guarantee: δ(ε) lies between them, closer the larger `reach` is. Raises `AccountingError` as `epsilon_bounds` does.
    """
    if form.noiseless:
        return DeltaBounds(1.0, 1.0)
    if form.empty:
        return DeltaBounds(0.0, 0.0)
    _require_in_range(form, 0.5)
    rounded, exact = _sampled_with_noise(form)
    precision = rounded.gaussian_precision * group_size**2
    if rounded.allocated or rounded.fixed_size:
        found = delta_of_passes(rounded, epsilon, DIRECTIONS if direction is None else (direction,))
        upper = min(found.upper, _gaussian_delta(rounded.unsampled_precision, epsilon) * (1 + 1e-8))
        return DeltaBounds(min(found.lower, upper) if exact else 0.0, upper)
    if not rounded.sampled:
        value = _gaussian_delta(precision, epsilon)
        return DeltaBounds(value * (1 - 1e-8) if exact else 0.0, min(value * (1 + 1e-8), 1.0))
    parts: list[DeltaBounds] = []
    for way in DIRECTIONS if direction is None else (direction,):
        steps = _steps(rounded, way, group_size)
        if not (parts and most_of_add(steps, precision, epsilon, parts[0].lower) <= parts[0].lower):
            parts.append(_delta_of_direction(steps, precision, epsilon, reach))
    most = 1.0 if precision else _probability_of_taking_part(rounded, group_size)
    upper = min(max(part.upper for part in parts), most)
    return DeltaBounds(min(max(part.lower for part in parts), upper) if exact else 0.0, upper)


def rough_epsilon(form: NormalForm, delta: float) -> float:
    """Return roughly ε at `delta` by the saddle-point approximation: a first guess, with no bound on its error."""
    rounded, _ = _sampled_with_noise(form)
    if not rounded.sampled:
        return gaussian_epsilon(rounded.gaussian_precision, delta)
    total = LossSum(_steps(rounded, REMOVE, 1), rounded.gaussian_precision, DROPPED[0] * delta)
    return max(saddle_point_of_delta(total, delta)[1], 0.0)


def _require_in_range(form: NormalForm, delta: float) -> None:
    replace(form, fixed_size=()).without_allocation().require_plain("this figure")
    if delta < SMALLEST_DELTA:
        raise AccountingError(
            f"this accountant is correct for delta >= {SMALLEST_DELTA:g}, got delta = {delta:g}",
            where="accountant 'saddle-point'",
            cure="Use accountant='rdp', an upper bound, or a larger delta",
        )
    steps = sum(count for _, _, count in form.sampled)
    if steps > MOST_STEPS:
        raise AccountingError(
            f"this accountant is correct for up to {MOST_STEPS:g} sampled steps, got {steps:g}: its rounding grows "
            f"with them",
            where="accountant 'saddle-point'",
            cure="Use accountant='rdp', an upper bound",
        )
    if math.isinf(form.gaussian_precision):
        raise AccountingError(
            "the noise is so small that epsilon is beyond the range of floating point", cure="Use more noise"
        )


def _sampled_with_noise(form: NormalForm) -> tuple[NormalForm, bool]:
    """Return `form` with extreme noise multipliers replaced by bounds on them, and whether nothing changed."""
    kept = tuple(
        (rate, min(noise, _LARGEST_NOISE), count) for rate, noise, count in form.sampled if noise >= LEAST_SAMPLED_NOISE
    )
    extra = math.fsum(count / noise**2 for _, noise, count in form.sampled if noise < LEAST_SAMPLED_NOISE)
    allocated = tuple((bins, k, min(noise, _LARGEST_NOISE), count) for bins, k, noise, count in form.allocated)
    fixed = [(rate, min(noise, _LARGEST_NOISE), count) for rate, noise, count in form.fixed_size]
    fixed_size = tuple(part for part in fixed if part[1] >= LEAST_FIXED_NOISE)
    extra += math.fsum(count / noise**2 for _, noise, count in fixed if noise < LEAST_FIXED_NOISE)
    result = replace(
        form,
        gaussian_precision=form.gaussian_precision + extra,
        sampled=kept,
        allocated=allocated,
        fixed_size=fixed_size,
    )
    return result, kept == form.sampled and allocated == form.allocated


def _probability_of_taking_part(form: NormalForm, group_size: int) -> float:
    return -math.expm1(group_size * math.fsum(count * math.log1p(-rate) for rate, _, count in form.sampled))


def _steps(form: NormalForm, direction: str, group_size: int) -> Steps:
    return steps_of(form.sampled, direction, group_size)


def _one_step(rate: float, noise: float, delta: float) -> EpsilonBounds:
    """Return ε of one step: amplification by sampling is exact (Balle, Barthe & Gaboardi, 2018, arXiv:1807.01647).

    δ_remove(ε) = q·δ_G(log(1 + (e^ε − 1)/q)) with δ_G of the unsampled release; the other direction is never worse.
    """
    if delta >= rate:
        return EpsilonBounds(0.0, 0.0)
    unsampled = gaussian_epsilon(noise**-2, delta / rate)
    value = (
        unsampled + math.log(rate + (1 - rate) * math.exp(-unsampled))
        if unsampled > 1
        else math.log1p(rate * math.expm1(unsampled))
    )
    return EpsilonBounds(value * (1 - 1e-8), value)


def _of_both(form: NormalForm, precision: float, group_size: int, delta: float) -> tuple[float, float]:
    """Return bounds on ε in the worse direction; "add" is not integrated where it surely holds at that of "remove"."""
    remove = of_direction(_steps(form, REMOVE, group_size), precision, delta)
    steps = _steps(form, ADD, group_size)
    if most_of_add(steps, precision, remove.lower, delta) <= delta:
        return remove.lower, remove.upper
    add = of_direction(steps, precision, delta)
    return max(remove.lower, add.lower), max(remove.upper, add.upper)


@lru_cache(maxsize=1024)
def _delta_of_direction(steps: Steps, precision: float, epsilon: float, reach: float) -> DeltaBounds:
    if steps[0][0].direction == ADD and not precision and epsilon > 0:
        # The loss of a step without the record never exceeds −k·log(1 − q).
        most = math.fsum(-count * step.group_size * math.log1p(-step.rate) for step, count in steps)
        if epsilon >= most:
            return DeltaBounds(0.0, 0.0)
    if len(steps) == 1 and steps[0][1] == 1 and not precision and steps[0][0].group_size == 1:
        value = _one_step_delta(steps[0][0], epsilon)
        return DeltaBounds(value * (1 - 1e-8), value * (1 + 1e-8))
    rough = LossSum(steps, precision, 1e-20)
    c = saddle_point(rough, epsilon)
    guess = log_delta_estimate(rough, c, epsilon)
    if guess < math.log(_NEGLIGIBLE):
        return DeltaBounds(0.0, 1e-250)
    delta = min(math.exp(guess), 0.9)
    if reach <= ROUGH_REACH:
        return _read_off(LossSum(steps, precision, DROPPED[-1] * delta), epsilon, delta, reach)
    least, middle, most = DROPPED
    result = _read_off(LossSum(steps, precision, least * delta), epsilon, delta, reach)
    last = saddle_point(LossSum(steps, precision, least * delta), epsilon)
    for dropped in (most, middle):
        total = LossSum(steps, precision, dropped * delta)
        if result.error <= GOOD_ENOUGH * result.upper or saddle_point(total, epsilon) < FREED * last:
            break
        found = _read_off(total, epsilon, delta, reach)
        result = DeltaBounds(max(result.lower, found.lower), min(result.upper, found.upper))
        if found.error > 3 * dropped * delta:  # what is left out is not what makes them loose
            break
    return result


def _read_off(total: LossSum, epsilon: float, delta: float, reach: float) -> DeltaBounds:
    return Contour(total, saddle_point(total, epsilon), epsilon, delta, reach).bounds(epsilon)


def _one_step_delta(step: SampledStep, epsilon: float) -> float:
    q, mu = step.rate, 1 / step.noise_multiplier
    if step.direction == REMOVE:
        shifted = epsilon + math.log((-math.expm1(-epsilon) + q * math.exp(-epsilon)) / q)
        return q * _gaussian_delta(mu * mu, shifted)
    left = 1 - math.exp(epsilon) * (1 - q) if epsilon < 700 else 0.0
    if left <= 0:
        return 0.0
    return left * _gaussian_delta(mu * mu, epsilon + math.log(q / left))


def _gaussian_delta(precision: float, epsilon: float) -> float:
    if precision == 0:
        return 0.0
    mu = math.sqrt(precision)
    return math.exp(gaussian.log_delta(mu, epsilon)) if mu <= 1e6 else float(np.float64(epsilon < precision))
