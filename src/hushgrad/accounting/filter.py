"""Privacy filters: a budget under which what later steps run may be chosen after seeing what earlier ones released.

The ordinary composition theorems add up steps that were planned beforehand. Where noise, rate or number of steps follow
from results, what is added up is itself random, and an ε computed from it holds for none of the runs that might have
been. A filter turns this round: the budget is fixed first, and a step that would pass it is refused.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

from hushgrad.accounting.composition import Composition, releases_of
from hushgrad.accounting.events.costs import FilterRule
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.events.renyi_filter import RenyiFilter
from hushgrad.arguments import open_unit_interval, positive_number
from hushgrad.errors import AccountingError, BudgetExhaustedError, UnreachableTargetError

MOST_STEPS = 10**9
"""Steps that cost nothing are counted up to here."""


@dataclass(frozen=True, slots=True)
class PrivacyFilter:
    """A budget for fully adaptive composition: `epsilon` > 0 at `delta` in (0, 1), fixed before the first step.

    Each step may then be chosen after seeing what earlier ones released: noise, sampling rate, clip norm, population,
    how many steps there are, and when a phase begins. All that is released together is (`epsilon`, `delta`)-private,
    and that is the ε of the account from its first step on (Feldman & Zrnic, 2021, arXiv:2008.11193).

    It is charged by one Rényi order, which costs more than the sharp accountants of a plan that is fixed beforehand:
    where all phases are planned, use `Budget`.
    """

    epsilon: float
    delta: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", positive_number("epsilon", self.epsilon))
        cure = "Pass less than 1 / the number of examples"
        object.__setattr__(self, "delta", open_unit_interval("delta", self.delta, cure))

    def rule(self, first: Event) -> RenyiFilter:
        """Return the filter with the order at which most steps like `first` fit; the order is fixed with it.

        Raises `UnreachableTargetError` where not one fits, and `AccountingError` for a step that no filter charges.
        """
        from hushgrad.accounting.renyi import ORDERS, renyi_budget, renyi_cost  # on use: a ledger needs no scipy

        def fit(order: int) -> float:
            budget, cost = renyi_budget(order, self.epsilon, self.delta), renyi_cost(first, order)
            return budget / cost if cost else math.inf

        order = max(ORDERS, key=fit)
        if fit(order) < 1:
            raise UnreachableTargetError(
                f"a filter of epsilon = {self.epsilon:g} at delta = {self.delta:g} has no room for one step of this "
                f"mechanism",
                cure="Use more noise, a smaller sampling rate or a larger budget",
            )
        return RenyiFilter(self.epsilon, self.delta, order)


class Filtering:
    """What an account under a filter has spent, and what still fits.

    Guarantee: the Rényi divergences of what was admitted never add up to more than the filter's budget, and which step
    is refused follows from the steps and the budget alone.
    """

    def __init__(self, rule: FilterRule, events: Composition) -> None:
        from hushgrad.accounting.renyi import renyi_budget

        self.rule = rule
        self._budget = renyi_budget(rule.order, rule.epsilon, rule.delta)
        self._counts: Counter[Event] = Counter()
        for event, count in releases_of(events):
            self._counts[event] += count

    def most(self, event: Event) -> int:
        """Return how many more steps like `event` fit."""
        cost = self._cost(event)
        if cost == 0:
            return MOST_STEPS
        count = min(MOST_STEPS, max(0, math.floor((self._budget - self._spent()) / cost) + 1))
        while count and self._spent(event, count) > self._budget:
            count -= 1
        return count

    def admit(self, event: Event, count: int, reserve: int) -> int:
        """Take `count` steps; return how many of the `reserve` that are to be put on disk at once fit, at least these.

        Raises:
            BudgetExhaustedError: the steps do not fit; nothing was taken.
            AccountingError: a step that no filter charges.
        """
        fits = self.most(event)
        if count > fits:
            raise BudgetExhaustedError(
                f"a further step does not fit into the filter of epsilon = {self.rule.epsilon:g} at delta = "
                f"{self.rule.delta:g} that this account was begun with; the model was not updated",
                cure="Stop here, or go on with more noise or a smaller sampling rate in a phase of its own",
            )
        self._counts[event] += count
        return max(count, min(reserve, fits))

    def _cost(self, event: Event) -> float:
        from hushgrad.accounting.renyi import renyi_cost

        return renyi_cost(event, self.rule.order)

    def _spent(self, more: Event | None = None, count: int = 0) -> float:
        parts = [known * self._cost(event) for event, known in self._counts.items()]
        return math.fsum(parts if more is None else [*parts, count * self._cost(more)])


def epsilon_under_filter(rule: FilterRule, composition: Composition, delta: float) -> float:
    """Return the ε at `delta` of an account under a filter: that of its whole budget.

    Raises `AccountingError` where the account holds what the filter had not admitted.
    """
    from hushgrad.accounting.renyi import epsilon_from_renyi, renyi_budget, renyi_cost

    order, epsilon, at = rule
    budget = renyi_budget(order, epsilon, at)
    spent = math.fsum(count * renyi_cost(event, order) for event, count in releases_of(composition))
    if spent > budget * (1 + 1e-12):
        raise AccountingError(
            "the account holds more than its filter admits, so that its budget does not hold",
            where="fully adaptive composition",
            cure="Do not quote this account: it was written by another program, or edited",
        )
    found = epsilon_from_renyi(order, budget, delta)
    return min(found, epsilon) if delta >= at else found


def filter_of(events: Composition) -> FilterRule | None:
    """Return the filter that an account was begun with, or None."""
    return next((event.filter_rule for event, _ in events if event.filter_rule is not None), None)
