"""Calibration of any quantity of a plan to any target, and the effect of a small change in each quantity.

    smallest(lambda sigma: epsilon(plan(sigma), 1e-5), target=3.0, low=0.3, high=100)
    largest(lambda steps: true_positive_rate(plan(steps), 1e-3), target=0.01, low=1, high=10**6, whole=True)

A *cost* (ε at a δ, μ, the true-positive rate at a false-positive rate) must rise, or must fall, in the quantity.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from scipy.optimize import brentq

from hushgrad.arguments import positive_number
from hushgrad.errors import InvalidArgumentError, UnreachableTargetError

TOLERANCE = 1e-4
_STEP = 0.01
_TINY = 1e-300
_MOST_WALKED = 1000


def smallest(cost: Callable[[float], float], *, target: float, low: float, high: float, whole: bool = False) -> float:
    """Return the smallest quantity in [low, high] whose cost is at most `target`, for a cost that falls (noise).

    Guarantee: the cost at the result is at most the target; a quantity smaller by a relative 1e-4 (by 1, if `whole`)
    costs more, or is below `low`.

    `target` > 0. Raises `UnreachableTargetError` where even `high` costs more.
    """
    good, bad = _range(low, high)[::-1]
    return _edge(cost, positive_number("target", target), good, bad, whole)


def largest(cost: Callable[[float], float], *, target: float, low: float, high: float, whole: bool = False) -> float:
    """Return the largest quantity in [low, high] whose cost is at most `target`, for a cost that rises (steps, rate).

    Guarantee: the cost at the result is at most the target; a quantity larger by a relative 1e-4 (by 1, if `whole`)
    costs more, or is above `high`.

    `target` > 0. Raises `UnreachableTargetError` where even `low` costs more.
    """
    good, bad = _range(low, high)
    return _edge(cost, positive_number("target", target), good, bad, whole)


@dataclass(frozen=True, slots=True)
class Elasticity:
    """By how many percent a cost changes when a quantity grows by 1%."""

    quantity: str
    percent: float


def elasticities(cost: Callable[[Mapping[str, float]], float], at: Mapping[str, float]) -> list[Elasticity]:
    """Return the elasticity of `cost` in each quantity of the plan `at`, by a central difference of 1%.

    0 where the cost is 0. `cost` gets a mapping with the same names.
    """
    result = []
    for name, value in at.items():
        up, down = (cost({**at, name: positive_number(name, value) * (1 + sign * _STEP)}) for sign in (1, -1))
        change = math.log(up / down) if up > 0 and down > 0 else 0.0
        result.append(Elasticity(name, change / math.log((1 + _STEP) / (1 - _STEP))))
    return result


def _range(low: float, high: float) -> tuple[float, float]:
    low, high = positive_number("low", low), positive_number("high", high)
    if low > high:
        raise InvalidArgumentError(
            f"must be <= high, got {low:g} and high = {high:g}", where="low", cure="Pass the smaller number as low"
        )
    return low, high


def _edge(cost: Callable[[float], float], target: float, good: float, bad: float, whole: bool) -> float:
    """Return the last value on the way from `good` to `bad` whose cost is at most `target`."""
    least = cost(good)
    if not least <= target:
        raise UnreachableTargetError(
            f"{target:g} cannot be reached: at {good:g}, the most private value allowed, the cost is {least:.4g}",
            where="target",
            cure="Widen the range, or change another quantity of the plan",
        )
    if cost(bad) <= target:
        return bad
    if not whole:
        return _between(cost, target, good, bad)
    while abs(good - bad) > 1:
        inside = sorted((good, bad))
        middle = float(min(max(round(math.sqrt(good * bad)), inside[0] + 1), inside[1] - 1))
        if cost(middle) <= target:
            good = middle
        else:
            bad = middle
    return good


def _between(cost: Callable[[float], float], target: float, good: float, bad: float) -> float:
    """Return a value at most `TOLERANCE` from the edge, by a root finder in logarithms that remembers its brackets."""
    seen = {good: True, bad: False}

    def excess(log_value: float) -> float:
        value = math.exp(log_value)
        at = cost(value)
        seen[value] = at <= target
        return math.log(min(max(at, _TINY), 1 / _TINY) / target)

    brentq(excess, *sorted((math.log(good), math.log(bad))), xtol=TOLERANCE / 4, rtol=1e-12)
    # The finder ends next to the edge, on either side; walk to the other one.
    direction = math.copysign(TOLERANCE / 2, bad - good)
    kept = max((v for v, fits in seen.items() if fits), key=lambda v: v * math.copysign(1.0, direction))
    for _ in range(_MOST_WALKED):
        following = kept * math.exp(direction)
        if not math.copysign(1.0, direction) * (following - bad) < 0 or cost(following) > target:
            return kept
        kept = following
    raise UnreachableTargetError(
        "the cost does not rise or fall steadily with the quantity, so no edge was found",
        where="cost",
        cure="Pass a cost that only rises, or only falls, in the quantity",
    )
