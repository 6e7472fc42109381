"""A step over all records."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.accounting.events.event import ADD_REMOVE_ONE, JSON, fields_to_json
from hushgrad.arguments import non_negative_number


@dataclass(frozen=True, slots=True)
class Gaussian:
    """One release of a clipped sum over all records, with Gaussian noise.

    `noise_multiplier` (no unit): standard deviation of the noise over the clip norm; 0 is allowed and not private.
    """

    noise_multiplier: float

    type: ClassVar[str] = "gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return fields_to_json(self)
