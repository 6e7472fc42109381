"""A step of a pass in which every record is in one random batch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ZERO_OUT
from hushgrad.accounting.events.numbered import StepOfPass
from hushgrad.arguments import count_of, non_negative_number


@dataclass(frozen=True, slots=True)
class BallsInBins(StepOfPass):
    """One release of a pass in which every record was put into one of `bins` batches, independently and uniformly.

    Charged without amplification, as `DisjointPass`: that is true, and more than needed. What a ledger holds of this
    kind keeps its charge; `RandomAllocation` is the kind that is charged with amplification.
    """

    bins: int
    noise_multiplier: float
    pass_index: int

    type: ClassVar[str] = "balls_in_bins_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", count_of("bins", self.bins, minimum=1))
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the step to its pass."""
        costs.add_step_of_pass(self.type, self.pass_index, self.noise_multiplier)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return how many passes there were, and why they are charged as they are."""
        passes = len({event.pass_index for event, _ in ran})
        return (
            f"every record in one random batch of each of {passes} pass{'' if passes == 1 else 'es'} (balls in "
            f"bins), charged without amplification"
        )
