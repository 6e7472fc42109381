"""A step over records drawn independently."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.accounting.events.event import ADD_REMOVE_ONE, JSON, fields_to_json
from hushgrad.arguments import non_negative_number, real_number
from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class PoissonSampled:
    """One release of a clipped, noised sum over records drawn independently with probability `sampling_rate`.

    `sampling_rate` (no unit) lies in [0, 1]; `noise_multiplier` is that of `Gaussian`.
    """

    sampling_rate: float
    noise_multiplier: float

    type: ClassVar[str] = "poisson_sampled_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        rate = real_number("sampling_rate", self.sampling_rate)
        if not 0 <= rate <= 1:
            raise InvalidArgumentError(f"sampling_rate must be in [0, 1], got {rate}")
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return fields_to_json(self)
