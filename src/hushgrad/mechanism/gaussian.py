"""Gaussian noise, drawn anew for every value of every step."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from hushgrad.accounting.events.event import Event
from hushgrad.arguments import non_negative_number
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.noise.gaussian import Noised, noisy_updates
from hushgrad.randomness import KeyStream
from hushgrad.sampling.scheme import SamplingScheme


@dataclass(frozen=True)
class GaussianNoise(NoiseMechanism):
    """Independent Gaussian noise of standard deviation `noise_multiplier` times the sensitivity.

    Raises `InvalidArgumentError` unless `noise_multiplier` is a number >= 0; 0 is allowed and not private (ε = ∞).
    """

    noise_multiplier: float
    follows_rule: ClassVar[bool] = True

    def __post_init__(self) -> None:
        object.__setattr__(self, "noise_multiplier", non_negative_number("noise_multiplier", self.noise_multiplier))

    def std(self, sensitivity: float) -> float:
        """Return σ times the sensitivity."""
        return self.noise_multiplier * sensitivity

    def start(self, stream: KeyStream) -> KeyStream:
        """Return the stream: nothing else is remembered."""
        return stream

    def updates(
        self, state: KeyStream, totals: Sequence[Noised], *, sensitivity: float, divisor: float
    ) -> list[Tensor]:
        """Return (total + σ · sensitivity · z) / divisor for each total."""
        return noisy_updates(totals, noise_std=self.std(sensitivity), divisor=divisor, stream=state)

    def event(self, sampling: SamplingScheme, index: int = 0) -> Event:
        """Return what the sampling makes of it."""
        return sampling.event(self.noise_multiplier, index)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Return the same noise with another σ."""
        return replace(self, noise_multiplier=noise_multiplier)

    def describe(self) -> str:
        """Return the standard deviation in words."""
        return f"Gaussian noise of standard deviation {self.noise_multiplier:g} times the sensitivity"
