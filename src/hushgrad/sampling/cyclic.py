"""Cyclic Poisson sampling: records are put into groups at random, and each step draws from the group in turn."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import numpy as np

from hushgrad.accounting.events.cyclic_poisson import CyclicPoisson
from hushgrad.arguments import probability, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.poisson import PoissonSampler, uniform_indices
from hushgrad.sampling.scheme import Batches, SamplingScheme


@dataclass(frozen=True)
class CyclicPoissonSampling(SamplingScheme):
    """Every record is in one of `cycle` groups; step t draws from group t mod `cycle`, at rate · cycle.

    A record's group is uniform and independent of the others'. It takes part at least `cycle` steps apart, and in each
    of its turns independently with probability rate · cycle, so in each step with probability `rate` on average. The
    groups are drawn from the sampler's stream and never saved: a run that is resumed has other ones, in a block of its
    own (docs/correlated-noise.md).

    Attributes:
        rate: q, the expected share of all records in a step, as of `PoissonSampling`; a public constant.
        cycle: b, the number of groups.

    Raises `InvalidArgumentError` unless 0 < rate, cycle >= 1 and rate · cycle <= 1.
    """

    rate: float
    cycle: int

    counts_in: ClassVar[Literal["steps", "passes", "blocks"]] = "blocks"
    can_be_declared: ClassVar[bool] = False  # nobody would see the groups
    draws_afresh: ClassVar[bool] = False

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", probability("rate", self.rate))
        object.__setattr__(self, "cycle", whole_number("cycle", self.cycle, minimum=1))
        if self.rate * self.cycle > 1 + 1e-12:
            raise InvalidArgumentError(
                f"a group of one in {self.cycle} would have to be drawn with probability rate * cycle = "
                f"{self.rate * self.cycle:g}, which is more than 1",
                where="cycle",
                cure=f"Take a cycle (and a strategy) of at most {max(1, int(1 / self.rate))}, or smaller batches",
            )

    @property
    def turn_rate(self) -> float:
        """The probability of a record to be drawn when it is its group's turn: rate · cycle."""
        return min(1.0, self.rate * self.cycle)

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> CyclicSampler:
        """Return what draws from range(population), with groups of its own."""
        return CyclicSampler(population, self.turn_rate, self.cycle, stream)

    def event(self, noise_multiplier: float, index: int = 0) -> CyclicPoisson:
        """Return what one step of block `index` costs."""
        return CyclicPoisson(self.turn_rate, noise_multiplier, self.cycle, index)

    @property
    def min_separation(self) -> int:
        """The number of groups."""
        return self.cycle

    def inclusion_probability(self, population: int) -> float:
        """Return the rate of a record whose turn it is."""
        return self.turn_rate

    def expected_batch_size(self, population: int) -> float:
        """Return rate · population."""
        return self.rate * population


class CyclicSampler:
    """Draws from groups of range(count) in turn, every record of a group independently with the exact probability.

    Guarantee: every record is in exactly one group, which is uniform and independent of the groups of the others.
    Guarantee: given the groups, a draw is one of `PoissonSampler` over the group whose turn it is.
    """

    def __init__(self, count: int, rate: float, cycle: int, stream: KeyStream) -> None:
        """Put the records into `cycle` groups; draw each record of a group with `rate`."""
        number = whole_number("count", count, minimum=1)
        groups = uniform_indices(cycle, number, stream.fork("groups"), Address(0))
        by_group = np.argsort(groups, kind="stable")
        self._members = np.split(by_group, np.cumsum(np.bincount(groups, minlength=cycle))[:-1])
        self._samplers: dict[int, PoissonSampler] = {}
        self._rate, self._stream = rate, stream.fork("turns")

    def draw(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the records that take part in `step`, ascending, int64; possibly none."""
        turn = step % len(self._members)
        members = self._members[turn]
        if not members.size:
            return members
        if turn not in self._samplers:
            self._samplers[turn] = PoissonSampler(members.size, self._rate, self._stream)
        drawn: np.ndarray[Any, np.dtype[np.int64]] = members[self._samplers[turn].draw(step)]
        return drawn

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the draws of `steps` consecutive steps."""
        for step in range(first_step, first_step + steps):
            yield tuple(self.draw(step).tolist())
