"""Random allocation: every record in one (or k) random steps of each pass, and in no others."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from hushgrad.accounting.events.random_allocation import RandomAllocation
from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.poisson import uniform_indices
from hushgrad.sampling.scheme import Allocation, Batches, SamplingScheme


@dataclass(frozen=True)
class BallsInBinsSampling(SamplingScheme):
    """Every example takes part in exactly `participations` of the `bins` steps of a pass over the data.

    All sets of that many steps are equally likely for an example, secret, and drawn anew in every pass, independently
    of other examples. Both are public constants. The size of a batch is secret and may be 0.

    A pass is charged whole with its first step; one that is broken off stays charged, and what follows is another one.

    Raises `InvalidArgumentError` unless 1 <= participations <= bins.
    """

    bins: int
    participations: int = 1

    counts_in: ClassVar[Literal["steps", "passes"]] = "passes"
    can_be_declared: ClassVar[bool] = False  # nobody would see where a pass ends
    draws_afresh: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", whole_number("bins", self.bins, minimum=1))
        object.__setattr__(self, "participations", whole_number("participations", self.participations, minimum=1))
        if self.participations > self.bins:
            raise InvalidArgumentError(
                f"must be at most bins = {self.bins}, got {self.participations}",
                where="participations",
                cure="Let an example take part in at most every step of a pass",
            )

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> BallsInBinsSampler:
        """Return what draws from range(population)."""
        return BallsInBinsSampler(population, self.allocation, stream)

    def event(self, noise_multiplier: float, index: int = 0) -> RandomAllocation:
        """Return what one step costs as a part of its pass."""
        return RandomAllocation(self.bins, noise_multiplier, index, self.participations)

    def inclusion_probability(self, population: int) -> float:
        """Return participations / bins, that of every record."""
        return self.participations / self.bins

    def expected_batch_size(self, population: int) -> float:
        """Return population · participations / bins."""
        return population * self.participations / self.bins

    @property
    def allocation(self) -> Allocation:
        """The steps of a pass, and how many of them a record takes part in."""
        return Allocation(self.bins, self.participations)


class BallsInBinsSampler:
    """Allocates range(count) to the steps of a pass.

    Guarantee: in a pass every record is in exactly `participations` different steps, and for uniform random bits all
    sets of so many steps are equally likely, independently for each record and each pass.
    """

    def __init__(self, count: int, allocation: Allocation, stream: KeyStream) -> None:
        self.count = whole_number("count", count, minimum=1)
        self.bins, self.participations = allocation
        self._stream = stream

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the records of each step of a pass, ascending.

        Raises `InvalidArgumentError` for a pass of another number of steps.
        """
        if steps != self.bins:
            raise InvalidArgumentError(
                f"a pass has {self.bins} steps, got {steps}", where="steps", cure="Draw whole passes"
            )
        chosen = self._steps_of_records(first_step)
        record = np.argsort(chosen.ravel(), kind="stable") % self.count
        ends = np.cumsum(np.bincount(chosen.ravel(), minlength=self.bins))
        for start, end in zip((0, *ends[:-1].tolist()), ends.tolist(), strict=True):
            yield tuple(np.sort(record[start:end]).tolist())

    def _steps_of_records(self, first_step: int) -> NDArray[np.int64]:
        """Return [participations, count]: the steps of each record, by Floyd's method for all records at once.

        The i-th choice is uniform in range(m + 1), m = bins − participations + i, and m itself where a record has that
        step already: all sets are then equally likely (Bentley & Floyd, 1987, Communications of the ACM 30(9)).
        """
        chosen: NDArray[Any] = np.empty((self.participations, self.count), dtype=np.int64)
        for i in range(self.participations):
            last = self.bins - self.participations + i
            drawn = uniform_indices(last + 1, self.count, self._stream, Address(first_step, i))
            taken = (chosen[:i] == drawn).any(axis=0)
            chosen[i] = np.where(taken, last, drawn)
        return chosen
