"""A step of a pass over the caller's own disjoint batches."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ZERO_OUT
from hushgrad.accounting.events.numbered import StepOfPass
from hushgrad.arguments import count_of, non_negative_number


@dataclass(frozen=True, slots=True)
class DisjointPass(StepOfPass):
    """One release inside a pass over disjoint batches, charged without amplification by sampling.

    A record takes part in at most one step of each pass (`pass_index`), so the steps of one pass together cost a given
    record one `Gaussian` event, that with the pass's smallest noise multiplier. Under add/remove-one the absence of a
    record would shift every later batch; hence zero-out.
    """

    noise_multiplier: float
    pass_index: int

    type: ClassVar[str] = "disjoint_pass_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the step to its pass."""
        costs.add_step_of_pass(self.type, self.pass_index, self.noise_multiplier)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return how many passes there were."""
        passes = len({event.pass_index for event, _ in ran})
        return (
            f"the caller's own batches, every record at most once in each of {passes} "
            f"pass{'' if passes == 1 else 'es'}, charged without amplification"
        )
