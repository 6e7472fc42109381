"""A step over a fixed number of records, drawn without replacement."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import LEAST_SAMPLED_NOISE, Costs
from hushgrad.accounting.events.event import REPLACE_ONE, Event
from hushgrad.arguments import count_of, non_negative_number
from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class FixedSizeSampled(Event):
    """One release of a clipped, noised sum over exactly `batch_size` of `population` records, without replacement.

    All subsets of that size are equally likely, anew in every step. `noise_multiplier` is over the clip norm, although
    replacing a record changes the sum by up to twice that; the accountants see to it.
    """

    batch_size: int
    population: int
    noise_multiplier: float

    type: ClassVar[str] = "fixed_size_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = REPLACE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "population", count_of("population", self.population, minimum=1))
        object.__setattr__(self, "batch_size", count_of("batch_size", self.batch_size, minimum=1))
        if self.batch_size > self.population:
            raise InvalidArgumentError(
                f"must be at most population = {self.population}, got {self.batch_size}",
                where="batch_size",
                cure="Pass a smaller batch_size",
            )
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the releases with the noise over twice the clip norm, which is what a replacement changes."""
        over_replacement = self.noise_multiplier / 2
        if self.batch_size == self.population or self.noise_multiplier < LEAST_SAMPLED_NOISE:
            costs.add_release(over_replacement, count)
        else:
            costs.add_fixed_size(self.batch_size / self.population, over_replacement, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return how many of how many records."""
        first = ran[0][0]
        return f"exactly {first.batch_size} of {first.population} records in every step, without replacement"

    @property
    def charged_rate(self) -> float:
        """The part of the records that a step takes."""
        return self.batch_size / self.population
