"""How many records fall into each of some public bins."""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.arguments import real_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.releases.query import Query, Read, read_by


@dataclass(frozen=True)
class Histogram(Query):
    """Counts of records by a value, in bins that are public; all bins get noise, empty ones too.

    Each record is in exactly one bin, so that one more or less moves the counts by 1 in norm.

    Attributes:
        categories: the values that are counted, public: a list that was read off the records is none. All others are
            counted together, in a last bin.
        edges: in place of categories: rising numbers e_1 < … < e_k; the bins are below e_1, from e_1 to below e_2, …,
            from e_k on. What is no number (NaN) is in the last bin.
        of: a function of one record; by default the record itself.
    """

    categories: Sequence[Hashable] | None = None
    edges: Sequence[float] | None = None
    of: Read | None = None

    def __post_init__(self) -> None:
        if (self.categories is None) == (self.edges is None):
            raise InvalidArgumentError(
                "needs categories or edges, and not both", where="Histogram", cure="Pass one of them"
            )
        if self.categories is not None:
            known = tuple(self.categories)
            if not known or not all(isinstance(value, Hashable) for value in known) or len(set(known)) < len(known):
                raise InvalidArgumentError(
                    "must be different values, at least one, each a number, text or the like",
                    where="categories",
                    cure="Name each public value once",
                )
            object.__setattr__(self, "categories", known)
        if self.edges is not None:
            edges = tuple(real_number("edges", edge) for edge in self.edges)
            if not edges or any(one >= other for one, other in itertools.pairwise(edges)):
                raise InvalidArgumentError(
                    "must be rising numbers, at least one", where="edges", cure="Pass public edges in rising order"
                )
            object.__setattr__(self, "edges", edges)

    @property
    def width(self) -> int:
        """One more than there are categories or edges."""
        return len(self.categories or self.edges or ()) + 1

    @property
    def sensitivity(self) -> float:
        """One."""
        return 1.0

    def row(self, record: Any) -> Tensor:
        """Return the number of its bin."""
        return torch.tensor([float(self._bin_of(read_by(self.of, record)))], dtype=torch.float64)

    def _bin_of(self, value: Any) -> int:
        if isinstance(value, Tensor) and value.numel() == 1:
            value = value.item()
        last = self.width - 1
        if self.edges is not None:
            try:
                number = float(value)
            except (TypeError, ValueError, OverflowError):
                return last
            return last if math.isnan(number) else bisect.bisect_right(self.edges, number)
        assert self.categories is not None
        try:
            return self.categories.index(value)
        except (TypeError, ValueError, RuntimeError):  # an array or tensor of several values is none of them
            return last

    def total(self, rows: Tensor) -> Tensor:
        """Return the counts."""
        return torch.bincount(rows.long().view(-1), minlength=self.width).double()

    def answer(self, noised: Tensor, population: int, noise_std: float) -> Tensor:
        """Return the noised counts, `[d]`; they may be below 0. The standard deviation of each is σ."""
        return noised

    def describe(self) -> str:
        """Return what it is, with the number of bins."""
        return f"a histogram of {self.width} public bins"
