"""A step of a pass over the caller's own disjoint batches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.accounting.events.event import JSON, ZERO_OUT, fields_to_json
from hushgrad.arguments import count_of, non_negative_number


@dataclass(frozen=True, slots=True)
class DisjointPass:
    """One release inside a pass over disjoint batches, charged without amplification by sampling.

    A record takes part in at most one step of each pass (`pass_index`), so the steps of one pass together cost a given
    record one `Gaussian` event, that with the pass's smallest noise multiplier. Under add/remove-one the absence of a
    record would shift every later batch; hence zero-out.
    """

    noise_multiplier: float
    pass_index: int

    type: ClassVar[str] = "disjoint_pass_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return fields_to_json(self)
