"""How many records touch each row: what each adds is clipped, and rows that nobody touches are nowhere held."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.touched_rows import TouchedRows
from hushgrad.sparse_rows.rule import SparseRows


@dataclass(frozen=True, eq=False)
class RowSpace:
    """The rows of all tables end to end: row r of a table has the number `offset` + r.

    Attributes:
        offsets: of each table, by name.
        sizes: the number of rows of each.
    """

    offsets: Mapping[str, int]
    sizes: Mapping[str, int]

    @classmethod
    def of(cls, sizes: Mapping[str, int]) -> RowSpace:
        """Return the space of tables with so many rows, in their order."""
        offsets, end = {}, 0
        for name, size in sizes.items():
            offsets[name], end = end, end + size
        return cls(offsets, dict(sizes))

    @property
    def total(self) -> int:
        """The number of rows of all tables together."""
        return sum(self.sizes.values())

    def part(self, numbers: Tensor, name: str) -> Tensor:
        """Return the rows of one table among ascending `numbers`, `[k]`."""
        begin, end = self.offsets[name], self.offsets[name] + self.sizes[name]
        first, last = torch.searchsorted(numbers, numbers.new_tensor([begin, end])).tolist()
        return numbers[first:last] - begin


@dataclass(frozen=True, eq=False)
class Counts:
    """Counts of the rows that were touched: `numbers` `[t]`, ascending and different, and `values` `[t]` in float64."""

    numbers: Tensor
    values: Tensor

    @classmethod
    def none(cls) -> Counts:
        """Return the counts of no records."""
        return cls(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))

    @classmethod
    def of(cls, tables: Mapping[str, TouchedRows], space: RowSpace, rule: SparseRows) -> Counts:
        """Return what the records of a physical batch add, each at most √m by its L2 norm over all tables.

        Args:
            tables: what was recorded of each table that was used, of the same B records.
            space: all tables.
            rule: says what a record adds.
        """
        if not tables:
            return cls.none()
        touched = {name: part.touched.cpu() for name, part in tables.items()}
        number_B = torch.stack([some.sum(1) for some in touched.values()]).sum(0)
        weights_B1 = rule.weights(number_B).unsqueeze(1)
        numbers = [space.offsets[name] + part.rows.ids.cpu()[touched[name]] for name, part in tables.items()]
        return cls._added(numbers, [weights_B1.expand_as(some)[some] for some in touched.values()])

    def plus(self, other: Counts) -> Counts:
        """Return the counts of both."""
        return self._added([self.numbers, other.numbers], [self.values, other.values])

    @classmethod
    def _added(cls, numbers: Sequence[Tensor], values: Sequence[Tensor]) -> Counts:
        found, places = torch.unique(torch.cat(list(numbers)), return_inverse=True)
        total = torch.zeros(len(found), dtype=torch.float64).index_add_(0, places, torch.cat(list(values)))
        return cls(found, total)
