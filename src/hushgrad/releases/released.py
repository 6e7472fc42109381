"""What came out of a release."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.event import Event


@dataclass(frozen=True, eq=False)
class Released:
    """A noised statistic. All of it is public.

    Attributes:
        answer: what was asked for; its kind follows from the query.
        noised: the noised sum that it was computed from, float64 `[d]`.
        noise_std: the standard deviation of the noise on each value of the sum.
        event: what was charged.
    """

    answer: Any
    noised: Tensor
    noise_std: float
    event: Event

    @property
    def noise_multiplier(self) -> float:
        """σ, the standard deviation of the noise over the sensitivity."""
        return self.event.noise_multiplier

    def epsilon(self, delta: float) -> float:
        """Return what this release costs by itself; beside others less than that is added (`session.epsilon`)."""
        return epsilon([(self.event, 1)], delta)
