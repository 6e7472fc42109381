"""Means and standard deviations of features, for normalisation."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hushgrad.arguments import real_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.releases.query import Query, Read, clipped, read_by, vector_of


class MeanAndStd(NamedTuple):
    """Of each feature, float64 `[d]`; a standard deviation is at least that of the noise."""

    mean: Tensor
    std: Tensor


@dataclass(frozen=True)
class Normalisation(Query):
    """Mean and standard deviation of each of d features, over all N records, from one release.

    A feature is cut to its public range, and mapped to u in [−1, 1]; each record adds (u, u² − ½) of all features. Of
    one feature that has a norm of at most √1.25, so the sensitivity is √(1.25 d). (u² alone would need √2.)

    Attributes:
        low: the public lower ends, d numbers.
        high: the public upper ends, d numbers.
        of: a function of one record; by default the record itself.
    """

    low: Sequence[float]
    high: Sequence[float]
    of: Read | None = None

    def __post_init__(self) -> None:
        low = tuple(real_number("low", value) for value in self.low)
        high = tuple(real_number("high", value) for value in self.high)
        if not low or len(low) != len(high) or any(one >= other for one, other in zip(low, high, strict=True)):
            raise InvalidArgumentError(
                f"must be as many lower ends as upper ones, each below its upper end, got {len(low)} and {len(high)}",
                where="low, high",
                cure="Pass the public range of each feature",
            )
        if not all(math.isfinite(other - one) for one, other in zip(low, high, strict=True)):
            raise InvalidArgumentError(
                "must be ranges that float64 holds", where="low, high", cure="Pass the public range of each feature"
            )
        object.__setattr__(self, "low", low)
        object.__setattr__(self, "high", high)

    @property
    def width(self) -> int:
        """Two values for each feature."""
        return 2 * len(self.low)

    @property
    def sensitivity(self) -> float:
        """√(1.25 d)."""
        return math.sqrt(1.25 * len(self.low)) * (1 + 2.0**-40)

    def row(self, record: Any) -> Tensor:
        """Return the features as they are."""
        return vector_of(read_by(self.of, record), len(self.low))

    def total(self, rows: Tensor) -> Tensor:
        """Return the sums of u and of u² − ½."""
        middle, half = self._range
        unit = ((rows - middle) / half).clamp(-1, 1)  # NaN stays, and drops the record
        return clipped(torch.cat([unit, unit.square() - 0.5], dim=1), self.sensitivity).sum(0)

    def answer(self, noised: Tensor, population: int, noise_std: float) -> MeanAndStd:
        """Return both, in the features' own units."""
        middle, half = self._range
        first, second = (noised / population).chunk(2)
        first = first.clamp(-1, 1)
        variance = (second + 0.5 - first.square()).clamp(min=(noise_std / population) ** 2, max=1.0)
        return MeanAndStd(middle + half * first, half * variance.sqrt())

    def describe(self) -> str:
        """Return what it is, with d."""
        return f"mean and standard deviation of {len(self.low)} features, each cut to a public range"

    @property
    def _range(self) -> tuple[Tensor, Tensor]:
        low, high = (torch.tensor(ends, dtype=torch.float64) for ends in (self.low, self.high))
        return (low + high) / 2, (high - low) / 2
