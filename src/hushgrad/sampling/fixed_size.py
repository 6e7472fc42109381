"""Batches of a fixed size: that many records in every step, without replacement."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from hushgrad.accounting.events.fixed_size import FixedSizeSampled
from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.poisson import uniform_subset
from hushgrad.sampling.scheme import Batches, SamplingScheme


@dataclass(frozen=True)
class FixedSizeSampling(SamplingScheme):
    """Exactly `batch_size` of `population` records take part in every step; all sets of them are equally likely.

    The relation is replace-one, under which a record changes the sum by up to twice the clip norm: at the same noise ε
    is about that of half the noise multiplier under Poisson sampling, and it answers another question.

    Raises `InvalidArgumentError` unless 1 <= batch_size <= population.
    """

    batch_size: int
    population: int

    def __post_init__(self) -> None:
        object.__setattr__(self, "population", whole_number("population", self.population, minimum=1))
        object.__setattr__(self, "batch_size", whole_number("batch_size", self.batch_size, minimum=1))
        if self.batch_size > self.population:
            raise InvalidArgumentError(
                f"must be at most population = {self.population}, got {self.batch_size}",
                where="batch_size",
                cure="Draw at most all records",
            )

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> FixedSizeSampler:
        """Return what draws from range(population)."""
        if population != self.population:
            raise InvalidArgumentError(
                f"the sampling is for a population of {self.population} records, and there are {population}",
                cure="Give FixedSizeSampling the number of records",
            )
        return FixedSizeSampler(population, self.batch_size, stream)

    def event(self, noise_multiplier: float, index: int = 0) -> FixedSizeSampled:
        """Return what one step costs; all passes are alike."""
        return FixedSizeSampled(self.batch_size, self.population, noise_multiplier)

    def inclusion_probability(self, population: int) -> float:
        """Return batch_size / population, that of every record."""
        return self.batch_size / self.population

    def expected_batch_size(self, population: int) -> float:
        """Return the size of every batch."""
        return self.batch_size

    @property
    def largest_batch(self) -> int:
        """The size of every batch."""
        return self.batch_size


class FixedSizeSampler:
    """Draws subsets of range(count) of one size.

    Guarantee: for uniform random bits all subsets of that size are equally likely, independently in every step.
    """

    def __init__(self, count: int, size: int, stream: KeyStream) -> None:
        self.count, self.size, self._stream = count, size, stream

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the draws of `steps` consecutive steps, ascending."""
        few = 2 * self.size <= self.count
        for step in range(first_step, first_step + steps):
            drawn = uniform_subset(
                self.count, self.size if few else self.count - self.size, self._stream, Address(step)
            )
            yield tuple((drawn if few else np.delete(np.arange(self.count), drawn)).tolist())
