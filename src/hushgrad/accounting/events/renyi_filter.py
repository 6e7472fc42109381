"""What stands first in an account that is charged by a privacy filter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs, FilterRule
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.arguments import count_of, open_unit_interval, positive_number
from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class RenyiFilter(Event):
    """No step, but the rule of its account: every later step must fit into a budget that was fixed before them all.

    What later steps run may then be chosen after seeing what earlier ones released (fully adaptive composition), with
    the filter of Feldman & Zrnic (2021, arXiv:2008.11193): as long as the Rényi divergences of order `order`, one that
    is fixed with the budget, add up to what implies (`epsilon`, `delta`), all that was released together is (`epsilon`,
    `delta`)-private, wherever it stops. It is the account's ε from its first step on: how much of the budget is spent
    may itself follow from what was released, so that no smaller figure holds.

    `noise_multiplier` is 0: it is no release.
    """

    epsilon: float
    delta: float
    order: int
    noise_multiplier: float = 0.0

    type: ClassVar[str] = "renyi_filter"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "epsilon", positive_number("epsilon", self.epsilon))
        object.__setattr__(self, "delta", open_unit_interval("delta", self.delta))
        object.__setattr__(self, "order", count_of("order", self.order, minimum=2))
        if self.noise_multiplier != 0:
            raise InvalidArgumentError(
                f"must be 0, got {self.noise_multiplier}", where="noise_multiplier", cure="Leave it out"
            )

    def add_to(self, costs: Costs, count: int) -> None:
        """Make it the rule by which all else is added up."""
        costs.add_filter(self.filter_rule, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return that nothing was drawn for it."""
        return "nothing was drawn for a filter"

    @property
    def filter_rule(self) -> FilterRule:
        """The order and the budget."""
        return FilterRule(self.order, self.epsilon, self.delta)
