"""A step over records drawn independently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs, counts_as_unsampled
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.arguments import non_negative_number, real_number
from hushgrad.errors import InvalidArgumentError


@dataclass(frozen=True, slots=True)
class PoissonSampled(Event):
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
            raise InvalidArgumentError(
                f"must be in [0, 1], got {rate}", where="sampling_rate", cure="Pass a number from 0 to 1"
            )
        object.__setattr__(self, "sampling_rate", rate)
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def add_to(self, costs: Costs, count: int) -> None:
        """Add the sampled releases; nothing where nobody is ever drawn."""
        if self.sampling_rate == 0:
            return
        if counts_as_unsampled(self.sampling_rate, self.noise_multiplier):
            costs.add_release(self.noise_multiplier, count)
        else:
            costs.add_sampled(self.sampling_rate, self.noise_multiplier, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return the rate, or the least and the greatest."""
        rates = sorted({event.sampling_rate for event, _ in ran})
        span = f"rate {rates[0]:.6g}" if len(rates) == 1 else f"rates {rates[0]:.6g} to {rates[-1]:.6g}"
        return f"Poisson, every record independently with {span} in every step"

    @property
    def poisson_rate(self) -> float:
        """The sampling rate."""
        return self.sampling_rate

    @property
    def charged_rate(self) -> float:
        """The sampling rate."""
        return self.sampling_rate
