"""Per-example gradients of a table that is looked up and multiplied with as well: embeddings tied to a head.

The sum of both uses would be `[B, num_rows, d]`, large for a vocabulary. Its norm needs only the inner product of both,
which is read at the rows that were looked up: ⟨R, O⟩ = Σ_s Σ_t left[t, id_s] · ⟨rows_s, right_t⟩.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rounding import CANCELLATION
from hushgrad.gradients.rows import Rows


@dataclass(frozen=True, eq=False)
class Tied(Contribution):
    """`G_i` = the rows looked up by example i plus `Σ_t left[i, t] ⊗ right[i, t]`, both of shape `[num_rows, d]`."""

    rows: Rows
    outer: OuterProducts

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.rows.batch_size

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Those of both uses."""
        return *self.rows.operands, *self.outer.operands

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`; where both uses all but cancel, they are taken of the gradient itself."""
        rows_B, outer_B = self.rows.measure(plan)[0], self.outer.measure(plan)[0]
        sizes_B = rows_B + outer_B
        norms_B = sizes_B + 2 * self._inner_product()
        for row in (norms_B < CANCELLATION * sizes_B).nonzero().squeeze(1).tolist():
            norms_B[row] = self._one(row).square().sum()
        return norms_B, self

    def _inner_product(self) -> Tensor:
        ids_BTS = self.rows.ids.unsqueeze(1).expand(-1, self.outer.left.shape[1], -1)
        left_BTS = self.outer.left.gather(2, ids_BTS)
        return (left_BTS * torch.bmm(self.outer.right, self.rows.gradients.mT)).sum((1, 2))

    def _one(self, row: int) -> Tensor:
        gradient = self.outer.left[row].mT @ self.outer.right[row]
        return gradient.index_add_(0, self.rows.ids[row], self.rows.gradients[row])

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i, `[num_rows, d]`."""
        return self.outer.weighted_sum(weights_B).add_(self.rows.weighted_sum(weights_B))

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, num_rows, d]`."""
        return self.outer.per_example().add_(self.rows.per_example())

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return both uses with changed operands."""
        rows = Rows(change(self.rows.ids), change(self.rows.gradients), self.rows.num_rows)
        return Tied(rows, OuterProducts(change(self.outer.left), change(self.outer.right)))
