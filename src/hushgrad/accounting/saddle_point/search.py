"""The search for the ε of one direction at a δ: contours, each placed nearer to it than the one before."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

from scipy.optimize import brentq

from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.accounting.saddle_point.contour import (
    REACH,
    ROUGH_REACH,
    Contour,
    saddle_point,
    saddle_point_of_delta,
)
from hushgrad.accounting.saddle_point.loss_sum import Counted, LossSum, Steps
from hushgrad.errors import AccountingError

GOOD_ENOUGH = 3e-5
"""The part of ε by which its bounds may differ without another contour."""

DROPPED = (1e-8, 1e-5, 1e-3)
"""Parts of δ for the outcomes that no node stands for; a later one is tried where the earlier left loose bounds."""

FREED = 1.05
"""By what factor c must grow for another part of δ to be worth trying."""

REACH_OF_ATOMS = 400.0
"""In the place of `REACH`, where atoms stand for losses that are not known as closely as that."""

_CONTOURS = 12


@dataclass(frozen=True, slots=True)
class Place:
    """About where an ε is, and its saddle point c."""

    c: float
    epsilon: float


def search(total: LossSum, delta: float, near: Place | None) -> tuple[EpsilonBounds, Place]:
    """Return bounds on ε, and about where it is; the search begins at `near`, where that is known."""
    finest = REACH_OF_ATOMS if total.atoms else REACH
    if near is None:
        c, epsilon = saddle_point_of_delta(total, delta)
    else:
        c, epsilon = saddle_point(total, near.epsilon), near.epsilon
    if epsilon <= 0:
        epsilon, c = 0.0, saddle_point(total, 0.0)
    result, reach = EpsilonBounds(0.0, math.inf), ROUGH_REACH if near is None else finest
    for number in range(_CONTOURS):
        contour = Contour(total, c, epsilon, delta, reach)
        if epsilon == 0.0 and contour.upper(0.0) <= delta:
            return EpsilonBounds(0.0, 0.0), Place(c, 0.0)
        root = _root_on(contour, epsilon, delta)
        is_near = abs(root - epsilon) * c < 0.5
        if not contour.smoothing or reach == finest:
            upper = _private_side(contour, root, delta)
            lower = _other_side(contour, min(upper, max(root, 0.0)), delta)
            result = EpsilonBounds(max(result.lower, lower), min(result.upper, upper))
            if result.error <= GOOD_ENOUGH * result.upper or is_near:
                break
        # Where it is, few nodes tell; how much, many.
        reach = finest if is_near or number >= _CONTOURS // 2 else reach
        epsilon = root
        c = saddle_point(total, epsilon)
    return result, Place(c, root)


def _root_on(contour: Contour, epsilon: float, delta: float) -> float:
    """Return the ε >= 0 at which the contour's upper bound on δ is `delta`; 0 if it is less there."""

    def excess(at: float) -> float:
        return math.log(max(contour.upper(at), 1e-300) / delta)

    here = excess(epsilon)
    # log δ falls by about c per unit of ε.
    step = max(abs(here), 1e-3) / contour.c
    low = high = epsilon
    for _ in range(60):
        if here > 0:
            low, high = high, high + step
            if excess(high) <= 0:
                break
        else:
            low, high = max(low - step, 0.0), low
            if excess(low) > 0:
                break
            if low == 0.0:
                return 0.0
        step *= 1.5
    else:
        return high
    return float(brentq(excess, low, high, xtol=1e-13 * max(high, 1e-300), rtol=1e-13))


def _private_side(contour: Contour, root: float, delta: float) -> float:
    """Return an ε >= `root` at which the upper bound on δ is at most `delta`; infinity if none is near."""
    value, step = root, 1e-11 * max(root, 1e-3 / contour.c)
    for _ in range(60):
        if contour.upper(value) <= delta:
            return value
        value, step = value + step, 2 * step
    return math.inf


def _other_side(contour: Contour, upper: float, delta: float) -> float:
    """Return an ε below `upper` at which the lower bound on δ is at least `delta`: no smaller ε holds."""
    step, short = 1e-10 * max(upper, 1e-3 / contour.c), 0.0
    while step < upper:
        if contour.bounds(upper - step).lower >= delta:
            break
        step, short = 6 * step, step
    else:
        return 0.0
    while short and step > 1.5 * short:
        middle = math.sqrt(short * step)
        if contour.bounds(upper - middle).lower >= delta:
            step = middle
        else:
            short = middle
    return upper - step


def most_of_add(steps: Steps, precision: float, epsilon: float, delta: float, atoms: Counted = ()) -> float:
    """Return an upper bound on δ(`epsilon`) in the direction "add", to be compared with `delta`; cheap, not sharp.

    The loss of a sampled step without the record never exceeds −k·log(1 − q), and for every s > 0
    δ(ε) <= C_s e^{K(s) − sε}.
    """
    surely = math.fsum(-count * step.group_size * math.log1p(-step.rate) for step, count in steps)
    if not precision and not atoms and epsilon >= surely * (1 + 1e-12):
        return 0.0
    if not (epsilon > 0 and delta > 0):
        return 1.0
    total = LossSum(steps, precision, 1e-3 * delta, atoms)
    s = saddle_point(total, epsilon)
    return math.exp(min(total.log_moment_at_most(s) + s * math.log(s) - (s + 1) * math.log1p(s) - s * epsilon, 0.0)) + (
        total.dropped
    )


@lru_cache(maxsize=512)
def of_direction(steps: Steps, precision: float, delta: float, atoms: Counted = ()) -> EpsilonBounds:
    """Return bounds on ε in one direction, leaving out more of a step's outcomes where that makes them closer.

    Where steps are rare and their losses have heavy tails, these tails keep c small and the integral cancels; leaving
    out a little more probability, which is added to δ, sets c free.
    """
    result, near = EpsilonBounds(0.0, math.inf), None
    for dropped in DROPPED:
        total = LossSum(steps, precision, dropped * delta, atoms)
        if near is not None and saddle_point(total, near.epsilon) < FREED * near.c:
            continue
        found, near = search(total, delta, near)
        result = EpsilonBounds(max(result.lower, found.lower), min(result.upper, found.upper))
        if result.error <= GOOD_ENOUGH * result.upper:
            break
    if math.isinf(result.upper):
        raise AccountingError(
            "this accountant lost too many digits on this composition",
            where="accountant 'saddle-point'",
            cure="Use accountant='rdp', an upper bound",
        )
    return result
