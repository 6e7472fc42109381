"""A step over all records."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.arguments import non_negative_number


@dataclass(frozen=True, slots=True)
class Gaussian(Event):
    """One release of a clipped sum over all records, with Gaussian noise.

    `noise_multiplier` (no unit): standard deviation of the noise over the clip norm; 0 is allowed and not private.
    """

    noise_multiplier: float

    type: ClassVar[str] = "gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the releases as they are."""
        costs.add_release(self.noise_multiplier, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return that every record took part, in every step or in how many."""
        steps = sum(count for _, count in ran)
        return "full batch, every record in every step" if alone else f"every record in {steps} of all steps"
