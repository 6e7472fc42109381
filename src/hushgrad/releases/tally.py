"""How often each of many public things occurs, where one record holds several of them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.arguments import whole_number
from hushgrad.releases.query import Query, Read, read_by, vector_of

_GRID = 1 << 24
_NONE = -1.0


@dataclass(frozen=True)
class Tally(Query):
    """Counts of records in public bins, of which each record may be in several: words, tags, items bought.

    A record in n different bins adds 1/√n to each of them, so that one more or less moves the counts by at most 1 in
    norm, however many it is in. Weights are rounded down to multiples of 2**-24, so that sums are exact. All bins get
    noise, empty ones too.

    Attributes:
        bins: how many bins there are, a public constant.
        at_most: of how many different bins of a record the first ones are counted, a public constant.
        of: a function of one record that returns the numbers of its bins, 0 … bins − 1; by default the record itself.
            What is none of them counts nowhere.
    """

    bins: int
    at_most: int
    of: Read | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "bins", whole_number("bins", self.bins, minimum=1))
        object.__setattr__(self, "at_most", whole_number("at_most", self.at_most, minimum=1))

    @property
    def width(self) -> int:
        """The number of bins."""
        return self.bins

    @property
    def sensitivity(self) -> float:
        """One."""
        return 1.0

    def row(self, record: Any) -> Tensor:
        """Return the first `at_most` different numbers; a record with fewer is filled up by what is no bin."""
        different = list(dict.fromkeys(vector_of(read_by(self.of, record)).tolist()))[: self.at_most]
        return torch.tensor(different + [_NONE] * (self.at_most - len(different)), dtype=torch.float64)

    def total(self, rows: Tensor) -> Tensor:
        """Return the weighted counts."""
        is_bin = (rows >= 0) & (rows < self.bins) & (rows == rows.floor())
        bins = torch.where(is_bin, rows, _NONE).long().sort(dim=1).values
        is_first = bins >= 0
        is_first[:, 1:] &= bins[:, 1:] != bins[:, :-1]
        different = is_first.sum(dim=1, keepdim=True).clamp(min=1)
        weights = (_GRID / different.double().sqrt()).floor() / _GRID
        counts = torch.zeros(self.bins, dtype=torch.float64)
        return counts.index_add_(0, bins[is_first], weights.expand_as(bins)[is_first])

    def answer(self, noised: Tensor, population: int, noise_std: float) -> Tensor:
        """Return the noised counts, `[bins]`; they may be below 0. The standard deviation of each is σ."""
        return noised

    def describe(self) -> str:
        """Return what it is, with both constants."""
        return f"a tally in {self.bins} public bins, of at most {self.at_most} of each record's"
