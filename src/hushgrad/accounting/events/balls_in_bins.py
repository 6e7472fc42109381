"""A step of a pass in which every record is in one random batch."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from hushgrad.accounting.events.event import JSON, ZERO_OUT, fields_to_json
from hushgrad.arguments import count_of, non_negative_number


@dataclass(frozen=True, slots=True)
class BallsInBins:
    """One release of a pass in which every record was put into one of `bins` batches, independently and uniformly.

    Charged without amplification, as `DisjointPass`: that is true, and known to be more than needed. The amplification
    (Chua et al., 2024, arXiv:2412.16802; Choquette-Choo et al., 2024, arXiv:2410.06266) has no closed form; estimates
    by simulation hold with a stated confidence only, and an ε here is one that holds.
    """

    bins: int
    noise_multiplier: float
    pass_index: int

    type: ClassVar[str] = "balls_in_bins_gaussian"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ZERO_OUT

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", count_of("bins", self.bins, minimum=1))
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))
        object.__setattr__(self, "pass_index", count_of("pass_index", self.pass_index, minimum=0))

    def to_json(self) -> JSON:
        """Return the event as a JSON object with its type and version."""
        return fields_to_json(self)
