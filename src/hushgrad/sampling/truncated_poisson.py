"""Poisson sampling that is cut at random to a largest batch."""

from __future__ import annotations

import math
from dataclasses import dataclass

from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson, inclusion_rate
from hushgrad.arguments import positive_number, probability, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.poisson import PoissonSampler
from hushgrad.sampling.scheme import Batches, SamplingScheme


@dataclass(frozen=True)
class TruncatedPoissonSampling(SamplingScheme):
    """As `PoissonSampling`, of which a uniformly random `max_batch_size` records take part where more were drawn.

    A logical batch then has a largest size, so that all of them can be cut into one number of physical batches of one
    shape. A step that is cut costs more, because a record can take another one's place; with the room that `with_room`
    leaves it is so rare that ε hardly shows it (docs/accounting.md).

    Attributes:
        rate: q, the probability of each record to be drawn in each step.
        population: N, the number of records, a public constant.
        max_batch_size: the most records in a logical batch, a public constant.

    Raises `InvalidArgumentError` unless 0 < rate <= 1, population >= 1 and max_batch_size >= 1.
    """

    rate: float
    population: int
    max_batch_size: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", probability("rate", self.rate))
        object.__setattr__(self, "population", whole_number("population", self.population, minimum=1))
        object.__setattr__(self, "max_batch_size", whole_number("max_batch_size", self.max_batch_size, minimum=1))

    @classmethod
    def with_room(
        cls, rate: float, population: int, *, multiple_of: int = 1, standard_deviations: float = 5.0
    ) -> TruncatedPoissonSampling:
        """Return sampling with so much room above the expected size: qN + k·sqrt(qN(1 − q)), rounded up.

        Args:
            rate: q.
            population: N.
            multiple_of: the largest batch is rounded up to a multiple of it: the rows of a physical batch.
            standard_deviations: k, the room in standard deviations of a draw's size.
        """
        q, count = probability("rate", rate), whole_number("population", population, minimum=1)
        size = whole_number("multiple_of", multiple_of, minimum=1)
        room = positive_number("standard_deviations", standard_deviations) * math.sqrt(q * count * (1 - q))
        most = min(count, math.ceil(q * count + room))
        return cls(q, count, size * math.ceil(most / size))

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> PoissonSampler:
        """Return what draws from range(population)."""
        if population != self.population:
            raise InvalidArgumentError(
                f"the sampling is for a population of {self.population} records, and there are {population}",
                cure="Give TruncatedPoissonSampling the number of records",
            )
        return PoissonSampler(population, self.rate, stream, most=self.max_batch_size)

    def event(self, noise_multiplier: float, index: int = 0) -> TruncatedPoisson:
        """Return what one step costs; all passes are alike."""
        return TruncatedPoisson(self.rate, noise_multiplier, self.population, self.max_batch_size)

    def inclusion_probability(self, population: int) -> float:
        """Return the probability of a record to be drawn and kept."""
        return inclusion_rate(population, self.rate, self.max_batch_size)

    def expected_batch_size(self, population: int) -> float:
        """Return the expected size before the cut, which is a little more than after it."""
        return self.rate * population

    @property
    def largest_batch(self) -> int:
        """The size that larger draws are cut to."""
        return self.max_batch_size

    @property
    def poisson_rate(self) -> float:
        """The rate of every record before the cut."""
        return self.rate
