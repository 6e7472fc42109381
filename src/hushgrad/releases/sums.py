"""Counts, sums and means."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.arguments import clip_norm, real_number, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.releases.indicator import Indicator
from hushgrad.releases.query import Query, Read, clipped, read_by, vector_of


@dataclass(frozen=True)
class Count(Indicator):
    """How many records there are for which `of` is true.

    The number of all records is public (docs/design.md); that of some is not. Its noise has the standard deviation σ.

    Attributes:
        of: a function of one record.
    """

    of: Read

    def row(self, record: Any) -> Tensor:
        """Return 1 or 0."""
        return torch.tensor([1.0 if bool(read_by(self.of, record)) else 0.0], dtype=torch.float64)

    def answer(self, noised: Tensor, population: int, noise_std: float) -> float:
        """Return the noised count; it may be below 0 or above N."""
        return float(noised)

    def describe(self) -> str:
        """Return what it is."""
        return "a count of records"


@dataclass(frozen=True)
class _OfVectors(Query):
    """A vector of `size` numbers of each record, of which no more than `clip_norm` is added."""

    size: int
    clip_norm: float
    of: Read | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "size", whole_number("size", self.size, minimum=1))
        object.__setattr__(self, "clip_norm", clip_norm("clip_norm", self.clip_norm))

    @property
    def width(self) -> int:
        """As many as are read of a record."""
        return self.size

    @property
    def sensitivity(self) -> float:
        """The clip norm."""
        return self.clip_norm

    def row(self, record: Any) -> Tensor:
        """Return the vector as it is."""
        return vector_of(read_by(self.of, record), self.size)


@dataclass(frozen=True)
class Sum(_OfVectors):
    """Σ_i x_i · min(1, C/‖x_i‖) of a vector of each record.

    Attributes:
        size: d, how many numbers are read of a record.
        clip_norm: C; a longer vector is scaled to this norm.
        of: a function of one record; by default the record itself.
    """

    def total(self, rows: Tensor) -> Tensor:
        """Return the sum of clipped vectors."""
        return clipped(rows, self.clip_norm).sum(0)

    def answer(self, noised: Tensor, population: int, noise_std: float) -> Tensor:
        """Return the noised sum, `[d]`."""
        return noised

    def describe(self) -> str:
        """Return what it is, with C."""
        return f"a sum of {self.size} values, each record's clipped to norm {self.clip_norm:g}"


@dataclass(frozen=True)
class Mean(_OfVectors):
    """The mean over all N records of a vector x_i, clipped around a centre c: of c + (x_i − c) · min(1, C/‖x_i − c‖).

    Divided by N, which is public; never by a noised or a private count.

    Attributes:
        size: d, how many numbers are read of a record.
        clip_norm: C, of the distance from the centre.
        of: a function of one record; by default the record itself.
        centre: public, d numbers, or one for all; the nearer to the mean, the smaller C may be.
    """

    centre: float | Sequence[float] = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        given = self.centre if isinstance(self.centre, Sequence) else (self.centre,) * self.size
        if len(given) != self.size:
            raise InvalidArgumentError(
                f"must be one number or {self.size}, got {len(given)}", where="centre", cure="Pass one for each value"
            )
        object.__setattr__(self, "centre", tuple(real_number("centre", value) for value in given))

    def total(self, rows: Tensor) -> Tensor:
        """Return the sum of clipped distances from the centre."""
        return clipped(rows - self._centre, self.clip_norm).sum(0)

    def answer(self, noised: Tensor, population: int, noise_std: float) -> Tensor:
        """Return the mean, `[d]`; its noise has the standard deviation σC/N."""
        return self._centre + noised / population

    def describe(self) -> str:
        """Return what it is, with C."""
        return f"a mean of {self.size} values, each record's clipped to norm {self.clip_norm:g} around a public centre"

    @property
    def _centre(self) -> Tensor:
        return torch.tensor(self.centre, dtype=torch.float64)
