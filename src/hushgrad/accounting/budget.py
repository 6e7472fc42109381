"""A budget: an ε that a run must not pass, and how many planned steps fit into it."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from hushgrad.accounting.accountants import ACCOUNTANTS, DEFAULT_ACCOUNTANT
from hushgrad.accounting.composition import Composition, normal_form
from hushgrad.accounting.neighbours import epsilon_of_group
from hushgrad.accounting.truncation import as_if_never_cut
from hushgrad.arguments import one_of, open_unit_interval, positive_number, whole_number
from hushgrad.errors import UnreachableTargetError

MOST = 10**9
"""A run of more steps is not planned for."""


@dataclass(frozen=True, slots=True)
class Budget:
    """At most `epsilon` > 0 at `delta` in (0, 1), as `accountant` computes it.

    With a `group_size` k, for k records at once: of a person who has at most k.
    """

    epsilon: float
    delta: float
    accountant: str = DEFAULT_ACCOUNTANT
    group_size: int = 1

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", positive_number("epsilon", self.epsilon))
        cure = "Pass less than 1 / the number of examples"
        object.__setattr__(self, "delta", open_unit_interval("delta", self.delta, cure))
        one_of("accountant", self.accountant, tuple(ACCOUNTANTS))
        whole_number("group_size", self.group_size, minimum=1)

    def spent(self, composition: Composition) -> float:
        """Return ε of what is released, as the budget counts it."""
        return epsilon_of_group(composition, self.delta, self.group_size, self.accountant).upper

    def most(self, plan: Callable[[int], Composition], limit: int = MOST) -> int:
        """Return the largest count <= `limit` for which `plan(count)` is within the budget.

        Guarantee: the count fits and one more does not (or is beyond `limit`), and it depends on nothing but the
        budget, the plan and the limit: asked again, after a crash say, the answer is the same.

        `plan` maps a count of steps (or passes) to everything that will have been released after them, what a ledger
        held before included; ε must not fall with the count. Raises `UnreachableTargetError` where not one fits.
        """
        limit = whole_number("limit", limit, minimum=1)
        seen: dict[int, float] = {}

        def cost(count: int) -> float:
            if count not in seen:
                seen[count] = self.spent(plan(count))
            return seen[count]

        if cost(1) > self.epsilon:
            raise UnreachableTargetError(
                f"a budget of epsilon = {self.epsilon:g} at delta = {self.delta:g} has no room for one more step: it "
                f"would bring epsilon to {cost(1):.4g}",
                cure="Use more noise, a smaller sampling rate or a larger budget",
            )
        good, bad = 1, _first_guess(plan, self, limit)
        while cost(bad) <= self.epsilon:
            if bad == limit:
                return limit
            good, bad = bad, min(limit, max(bad + 1, math.ceil(bad * 1.1) if good > 1 else 2 * bad))
        while bad - good > 1:
            for middle in _between(good, cost(good), bad, cost(bad), self.epsilon):
                if good < middle < bad:
                    good, bad = (middle, bad) if cost(middle) <= self.epsilon else (good, middle)
        return good


def _between(good: int, below: float, bad: int, above: float, target: float) -> tuple[int, int, int]:
    """Return three counts to try: where a line through both ends meets the target, next to it, and the middle."""
    middle = round(math.sqrt(good * bad))
    if not 0 < below < above < math.inf:
        return middle, middle, middle
    fraction = math.log(target / below) / math.log(above / below)
    met = math.floor(good * (bad / good) ** fraction)
    margin = max(1, round(0.02 * (bad - good)))
    # The line tends to end on one side: a point a little beyond it closes the bracket from the other.
    return met, met + (margin if met - good < bad - met else -margin), middle


def _first_guess(plan: Callable[[int], Composition], budget: Budget, limit: int) -> int:
    """Return about how many steps the central limit of the privacy loss allows; only a first guess, at least 2."""
    from hushgrad.accounting.gaussian import gaussian_epsilon

    def rough(count: int) -> float:
        form = as_if_never_cut(normal_form(plan(count))).as_if_independent()
        precision = form.gaussian_precision * budget.group_size**2
        for rate, noise, number in form.sampled:
            precision += number * _divergence(rate, noise, budget.group_size)
        return gaussian_epsilon(precision, budget.delta)

    low, high = 1, limit
    while high > low * 1.01 + 1:
        middle = max(low + 1, round(math.sqrt(low * high)))
        low, high = (middle, high) if rough(middle) <= budget.epsilon else (low, middle)
    return min(max(high, 2), limit) if limit > 1 else 1


def _divergence(rate: float, noise: float, group_size: int) -> float:
    """Return the χ² divergence of a sampled step from one without a group, of which Binomial(k, rate) take part."""
    if group_size == 1:
        return rate**2 * math.expm1(min(noise**-2, 500.0))
    from scipy import stats

    counts = np.arange(min(group_size, 100) + 1)  # of more, the first guess may be off
    weights = stats.binom.pmf(counts, group_size, rate)
    return float(weights @ np.expm1(np.minimum(np.outer(counts, counts) / noise**2, 500.0)) @ weights)
