"""A step of a pass in which every record is in random steps: balls in bins, and k out of t."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ADD_REMOVE_ONE
from hushgrad.accounting.events.numbered import StepOfPass
from hushgrad.arguments import count_of, non_negative_number
from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class RandomAllocation(StepOfPass):
    """One release of a pass of `bins` steps, in `participations` of which every record takes part.

    All sets of that many steps are equally likely for a record; they are secret, and independent of other records and
    of other passes (`pass_index`). With one participation that is *balls in bins*. The absence of a record moves no
    other, so the relation is add/remove-one. A pass is charged whole with its first step: one that is broken off has
    told by its first steps who was not in them.
    """

    bins: int
    noise_multiplier: float
    pass_index: int
    participations: int = 1

    type: ClassVar[str] = "random_allocation_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", count_of("bins", self.bins, minimum=1))
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))
        object.__setattr__(self, "participations", count_of("participations", self.participations, minimum=1))
        if self.participations > self.bins:
            raise InvalidArgumentError(
                f"must be at most bins = {self.bins}, got {self.participations}",
                where="participations",
                cure="Let a record take part in at most every step of a pass",
            )

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the step to its pass."""
        costs.add_step_of_allocation(self.bins, self.participations, self.pass_index, self.noise_multiplier)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return how many passes there were, into how many batches, and that each is charged whole."""
        passes: dict[tuple[int, int], set[int]] = {}
        for event, _ in ran:
            passes.setdefault((event.bins, event.participations), set()).add(event.pass_index)
        said = [
            f"every record in {_random_steps(participations)} of the {bins} of each of {len(indices)} "
            f"pass{'' if len(indices) == 1 else 'es'}"
            for (bins, participations), indices in passes.items()
        ]
        name = "balls in bins" if all(event.participations == 1 for event, _ in ran) else "random allocation"
        return f"{', '.join(said)} ({name}), drawn anew for each pass, and a pass charged whole with its first step"

    @property
    def charged_rate(self) -> float:
        """The part of a pass's steps that a record takes part in."""
        return self.participations / self.bins


def _random_steps(participations: int) -> str:
    return "one random step" if participations == 1 else f"{participations} random steps"
