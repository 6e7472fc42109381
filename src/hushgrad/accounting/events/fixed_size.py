"""A step over a fixed number of records, drawn without replacement."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.accounting.events.event import JSON, REPLACE_ONE, fields_to_json
from hushgrad.arguments import count_of, non_negative_number
from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class FixedSizeSampled:
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
                f"batch_size must be at most population = {self.population}, got {self.batch_size}"
            )
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return fields_to_json(self)
