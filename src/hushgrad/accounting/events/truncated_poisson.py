"""A step over records drawn independently, cut at random to a largest batch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from hushgrad.accounting.events.costs import Costs, counts_as_unsampled
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.arguments import count_of


@dataclass(frozen=True, slots=True)
class TruncatedPoisson(Event):
    """As `PoissonSampled`, of which a uniformly random `max_batch_size` records are kept where more were drawn.

    `population`: the number of records, a public constant that neighbours differ from by at most one.
    """

    sampling_rate: float
    noise_multiplier: float
    population: int
    max_batch_size: int

    type: ClassVar[str] = "truncated_poisson_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        plain = PoissonSampled(self.sampling_rate, self.noise_multiplier)
        object.__setattr__(self, "sampling_rate", plain.sampling_rate)
        object.__setattr__(self, "noise_multiplier", plain.noise_multiplier)
        object.__setattr__(self, "population", count_of("population", self.population, minimum=1))
        object.__setattr__(self, "max_batch_size", count_of("max_batch_size", self.max_batch_size, minimum=1))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the truncated releases; nothing where nobody is ever drawn.

        Where the sampling does not count, a record can still take another one's place: a shift of twice the clip norm.
        """
        if self.sampling_rate == 0:
            return
        if counts_as_unsampled(self.sampling_rate, self.noise_multiplier):
            costs.add_release(self.noise_multiplier / 2, count)
        else:
            costs.add_truncated(self.sampling_rate, self.noise_multiplier, self.population, self.max_batch_size, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return the greatest rate and the smallest of the largest batches."""
        return (
            f"Poisson with rate {max(event.sampling_rate for event, _ in ran):.6g}, cut at random to at most "
            f"{min(event.max_batch_size for event, _ in ran)} of {ran[0][0].population} records"
        )

    @property
    def poisson_rate(self) -> float:
        """The sampling rate, before the cut."""
        return self.sampling_rate

    @property
    def charged_rate(self) -> float:
        """The probability of a record to be drawn and kept."""
        return inclusion_rate(self.population, self.sampling_rate, self.max_batch_size)


def inclusion_rate(population: int, rate: float, max_batch_size: int | None = None) -> float:
    """Return the probability of a record to take part in a step: E min(Binomial(N, q), B) / N."""
    if max_batch_size is None or max_batch_size >= population:
        return rate
    from scipy.stats import binom

    beyond = sizes_beyond(population, rate, max_batch_size)
    return rate - float(binom.sf(beyond, population, rate).sum()) / population


def sizes_beyond(population: int, rate: float, most: int) -> NDArray[np.int64]:
    """Return the sizes k >= `most` of a draw with a P(K > k) that counts."""
    mean = population * rate
    return np.arange(most, min(population, max(most + 1, math.ceil(mean + 40 * math.sqrt(mean + 1) + 100))))
