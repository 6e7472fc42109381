"""Poisson sampling that is cut at random to a largest batch."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

from hushgrad.arguments import positive_number, probability, whole_number


@dataclass(frozen=True)
class TruncatedPoissonSampling:
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
    adjacency: ClassVar[str] = "add/remove"

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

    def describe(self) -> str:
        """Return what this sampling is, as a sentence for ledgers and reports."""
        return (
            f"Truncated Poisson sampling: every one of {self.population} examples is drawn in a step independently "
            f"with probability {self.rate!r}, and a uniformly random {self.max_batch_size} take part where more were "
            f"drawn."
        )
