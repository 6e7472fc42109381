"""Per-example gradients of a table that is read on other dimensions than its first: rows of its flattened form.

A table `[n, m]` read at pairs of places is one of `n·m` rows with one value each; read on its second dimension, it is
its transpose with `m` rows. So the gradients are `Rows` of the table with the dimensions that are read in front, and
flattened; what comes out is put back in the parameter's own shape.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.rows import OfRows, Rows


@dataclass(frozen=True, eq=False)
class Places(OfRows):
    """`rows` of a parameter of shape `shape`, whose dimensions `dims` are flattened into the rows."""

    shape: tuple[int, ...]
    dims: tuple[int, ...]

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and rows that were looked up more than once added up into one."""
        norms_B, rows = self.rows.measure(plan)
        assert isinstance(rows, Rows)
        return norms_B, Places(rows, self.shape, self.dims)

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i in the parameter's shape."""
        return self._in_place(self.rows.weighted_sum(weights_B).unsqueeze(0)).squeeze(0)

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, *shape]`."""
        return self._in_place(self.rows.per_example())

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the rows with changed operands."""
        return Places(
            Rows(change(self.rows.ids), change(self.rows.gradients), self.rows.num_rows), self.shape, self.dims
        )

    def of_groups(self, groups: Groups) -> Contribution:
        """Return the places of a group's examples one behind the other."""
        return Places(self.rows.of_groups(groups), self.shape, self.dims)

    def same_form(self, other: Places) -> bool:
        """Return whether both read the parameter in one way, so that their rows are rows of one table."""
        return (self.shape, self.dims) == (other.shape, other.dims)

    def _in_place(self, tables: Tensor) -> Tensor:
        """`[B, rows, d]` to `[B, *shape]`."""
        rest = [size for dim, size in enumerate(self.shape) if dim not in self.dims]
        sizes = [self.shape[dim] for dim in self.dims]
        moved = tables.reshape(tables.shape[0], *sizes, *rest)
        return torch.movedim(moved, list(range(1, len(sizes) + 1)), [dim + 1 for dim in self.dims]).contiguous()
