"""Gaussian noise on a grid, to which the sum is rounded: floating point says nothing of what the noise hides."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar, Self

from torch import Tensor

from hushgrad.accounting.events.event import Event
from hushgrad.accounting.ledger.contract import Rounding
from hushgrad.arguments import non_negative_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.mechanism.noise import NoiseMechanism
from hushgrad.noise.cells import MOST_CELLS, distance
from hushgrad.noise.gaussian import Noised
from hushgrad.noise.grid import grid_updates
from hushgrad.randomness import KeyStream
from hushgrad.sampling.scheme import SamplingScheme

SHARE = 2.0**-12
"""How much larger than the clip rule's sensitivity that of the rounded sum is taken to be, as a share of it."""

MEASURED = 1e-5
"""The part of it for the norms: what a record adds is at most its limit times 1 + 1e-5."""

LEAST_ERROR = 2.0**-17
"""The least part of it that must be left for the rounding of the sum, each way."""

_BITS = 31
_LEAST_NOISE = 2.0**-20


@dataclass(frozen=True)
class GridNoise(NoiseMechanism):
    """Gaussian noise as `GaussianNoise` is, on a grid, for sums that are rounded to that grid (docs/floating-point.md).

    With an ideal Gaussian Z the release is round(s + Z) of a sum on the grid: the Gaussian mechanism, then a rounding,
    so its ε. One record moves the rounded sum by more than the sensitivity C of the clip rule: by C(1 + 1e-5) + 2η +
    g√d for sums with an error of at most η, in d values on a grid of spacing g. The noise is made for C(1 + 2**-12),
    which is no less.

    Raises `InvalidArgumentError` unless `noise_multiplier` is 0 or a number from 2**-20 on.

    Guarantee: the noise is made for no less than the sensitivity of the rounded sum and of its error.
    """

    noise_multiplier: float
    sums_in_float64: ClassVar[bool] = True

    def __post_init__(self) -> None:
        value = non_negative_number("noise_multiplier", self.noise_multiplier)
        if 0 < value < _LEAST_NOISE:
            raise InvalidArgumentError(
                f"must be 0 or at least 2**-20 for noise on a grid, got {value:g}",
                where="noise_multiplier",
                cure="Take more noise: so little is not private",
            )
        object.__setattr__(self, "noise_multiplier", value)

    def std(self, sensitivity: float) -> float:
        """Return σ times the sensitivity of the rounded sum."""
        return self.noise_multiplier * sensitivity * (1 + SHARE)

    def spacing(self, sensitivity: float) -> float:
        """Return g: 2**-31 of the sensitivity, or of the noise where that is larger, or less; a power of two."""
        return math.ldexp(1.0, math.frexp(max(sensitivity, self.std(sensitivity)))[1] - 1 - _BITS)

    def rounding(self, sensitivity: float, coordinates: int) -> Rounding | None:
        """Return the grid of a step, the error that its sum may have, and how far its law is from what is charged.

        Args:
            sensitivity: that of the clip rule, in units of the gradient.
            coordinates: d, how many values are released in a step.

        Raises `InvalidArgumentError` where so many values leave no room for an error of the sum.
        """
        spacing = self.spacing(sensitivity)
        error = (SHARE - MEASURED - spacing * math.sqrt(coordinates) / sensitivity) / 2
        if self.noise_multiplier == 0:
            return None  # and no privacy
        if error < LEAST_ERROR:
            raise InvalidArgumentError(
                f"rounding {coordinates} values to a grid of {spacing:g} may move the sum by more than 2**-12 of its "
                f"sensitivity {sensitivity:g}, which is what the noise is larger by",
                where="noise",
                cure='Take less noise, fewer trainable values, or noise="gaussian"',
            )
        return Rounding(grid=spacing, error=error * sensitivity, distance=coordinates * distance(MOST_CELLS))

    def start(self, stream: KeyStream) -> KeyStream:
        """Return the stream: nothing else is remembered."""
        return stream

    def updates(
        self, state: KeyStream, totals: Sequence[Noised], *, sensitivity: float, divisor: float
    ) -> list[Tensor]:
        """Return (round(total / g) + k) · g / divisor for each total, which must be in float64."""
        return grid_updates(
            totals,
            noise_std=self.std(sensitivity),
            spacing=self.spacing(sensitivity),
            divisor=divisor,
            stream=state,
        )

    def event(self, sampling: SamplingScheme, pass_index: int = 0) -> Event:
        """Return what the sampling makes of Gaussian noise with this σ, of which it is a rounding."""
        return sampling.event(self.noise_multiplier, pass_index)

    def with_noise_multiplier(self, noise_multiplier: float) -> Self:
        """Return the same noise with another σ."""
        return replace(self, noise_multiplier=noise_multiplier)

    def describe(self) -> str:
        """Return the standard deviation in words."""
        return (
            f"Gaussian noise of standard deviation {self.noise_multiplier:g} times the sensitivity, on a grid to which "
            f"the sum is rounded"
        )
