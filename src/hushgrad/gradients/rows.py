"""Per-example gradients of a table of which each example looks up some rows: embeddings."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.placement import Put
from hushgrad.gradients.rounding import squared_norms


@dataclass(frozen=True, eq=False)
class Rows(Contribution):
    """Row `ids[i, t]` of example i's gradient receives `gradients[i, t]`; ids `[B, T]`, gradients `[B, T, d]`."""

    ids: Tensor
    gradients: Tensor
    num_rows: int

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.ids.shape[0]

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """Ids and gradients."""
        return self.ids, self.gradients

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and rows that were looked up more than once added up into one."""
        once = self.once()
        return squared_norms(once.gradients.reshape(self.batch_size, -1)), once

    def once(self) -> Rows:
        """Return the same gradients with each row of an example in one place, and zeros in its other places.

        Summed with weights place by place, terms that cancel would be rounded otherwise than they were measured.
        """
        examples_B1 = torch.arange(self.batch_size, device=self.ids.device).unsqueeze(1)
        pairs, segments = torch.unique(examples_B1 * self.num_rows + self.ids, return_inverse=True)
        if pairs.shape[0] == self.ids.numel():
            return self
        segments, width = segments.flatten(), self.gradients.shape[-1]
        places_S = torch.empty_like(pairs).scatter_(0, segments, torch.arange(len(segments), device=pairs.device))
        sums = self.gradients.new_zeros(len(segments), width)
        sums.index_add_(0, places_S[segments], self.gradients.reshape(-1, width))
        return Rows(self.ids, sums.view_as(self.gradients), self.num_rows)

    @property
    def terms(self) -> int:
        """How many rows are looked up, by all examples."""
        return self.ids.numel()

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i, `[num_rows, d]`, by adding rows into place."""
        weighted = self.gradients * weights_B.to(self.gradients.dtype).reshape(-1, 1, 1)
        width = self.gradients.shape[-1]
        total = self.gradients.new_zeros(self.num_rows, width)
        return total.index_add_(0, self.ids.flatten(), weighted.reshape(-1, width))

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, num_rows, d]`."""
        return self.add_to(self.gradients.new_zeros(self.batch_size, self.num_rows, self.gradients.shape[-1]))

    def add_to(self, tables: Tensor) -> Tensor:
        """Add the gradients to others, `[B, num_rows, d]` and contiguous, in place."""
        width = self.gradients.shape[-1]
        examples_B1 = torch.arange(self.batch_size, device=self.ids.device).unsqueeze(1)
        places = (examples_B1 * self.num_rows + self.ids).flatten()
        tables.view(-1, width).index_add_(0, places, self.gradients.reshape(-1, width))
        return tables

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the rows with changed operands."""
        return Rows(change(self.ids), change(self.gradients), self.num_rows)

    def of_groups(self, groups: Groups) -> Rows:
        """Return the rows of a group's examples one behind the other."""
        groups.require(self.batch_size)
        return Rows(groups.blocks(self.ids), groups.blocks(groups.weighted(self.gradients)), self.num_rows)

    def in_row(self, put: Put) -> Contribution:
        """Return the gradients of the rows that are here; those of others are zeros in the place of the first one."""
        ids, gradients = put(self.ids, {}), put(self.gradients, {1: 2})
        first, count = put.rows(self.num_rows)
        if not count:
            return Dense(gradients.new_zeros(len(ids), 0, gradients.shape[-1]))
        is_here = (ids >= first) & (ids < first + count)
        return Rows((ids - first).masked_fill(~is_here, 0), gradients.masked_fill(~is_here.unsqueeze(-1), 0), count)


@dataclass(frozen=True, eq=False)
class OfRows(Contribution):
    """What is made of `rows`: its examples, operands and terms are theirs."""

    rows: Rows

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.rows.batch_size

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Those of the rows."""
        return self.rows.operands

    @property
    def terms(self) -> int:
        """Those of the rows."""
        return self.rows.terms
