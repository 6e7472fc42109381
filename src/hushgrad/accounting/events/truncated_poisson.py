"""A step over records drawn independently, cut at random to a largest batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.accounting.events.event import ADD_REMOVE_ONE, JSON, fields_to_json
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.arguments import count_of


@dataclass(frozen=True, slots=True)
class TruncatedPoisson:
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

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return fields_to_json(self)
