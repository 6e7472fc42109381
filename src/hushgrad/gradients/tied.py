"""Per-example gradients of a table that is looked up and multiplied with as well: embeddings tied to a head.

The sum of both uses would be `[B, num_rows, d]`, large for a vocabulary. Its norm needs only the inner product of both,
which is read at the rows that were looked up: ⟨R, O⟩ = Σ_s Σ_t left[t, id_s] · ⟨rows_s, right_t⟩.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hushgrad.gradients.apart import Apart, in_portions, measured_in_float64
from hushgrad.gradients.contribution import KEEP_NONE, Contribution, Plan
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rounding import FAR_IN_FLOAT64, UNIT, squared_norms
from hushgrad.gradients.rows import Rows

# How often both squared norms together may hold that of the sum, until it is taken and summed in float64.
SHARED = 8.0


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
        """Return the squared norms `[B]`; where both uses cancel one another, they are taken in float64."""
        rows_B, rows = self.rows.measure(plan)
        outer_B, outer = self.outer.measure(replace(plan, keep_bytes=KEEP_NONE))
        tied = Tied(rows, self.outer)  # type: ignore[arg-type]
        norms_B, sizes_B = rows_B + outer_B + 2 * tied._inner_product(), rows_B + outer_B
        if self.outer.left.dtype == torch.float64:
            return tied._by_forming(norms_B, sizes_B, plan), tied
        cancelled_B = sizes_B > SHARED * norms_B.clamp(min=plan.floor)
        if isinstance(outer, Apart):
            cancelled_B[outer.rows] = True
        apart = cancelled_B.nonzero().squeeze(1)
        if not len(apart):
            return norms_B, tied
        return norms_B.index_copy(0, apart, measured_in_float64(tied, apart, plan)), Apart(tied, apart)

    def _by_forming(self, norms_B: Tensor, sizes_B: Tensor, plan: Plan) -> Tensor:
        """Return norms in float64, of the gradient itself where its digits are lost in the sum of three terms."""
        lost_B = sizes_B > FAR_IN_FLOAT64 * norms_B.clamp(min=plan.floor)
        for row in lost_B.nonzero().squeeze(1).tolist():
            norms_B[row] = self._one(row).square().sum()
        rounded_B = sizes_B.sqrt().mul_(2 * (self.outer.terms + self.rows.ids.shape[1]) * UNIT)
        return norms_B.clamp(min=0).sqrt().add_(rounded_B).square_()

    @property
    def terms(self) -> int:
        """Those of both uses."""
        return self.rows.terms + self.outer.terms

    def term_squares(self) -> Tensor | None:
        """Return the square of the norm of the rows and the size of the outer products together."""
        rows_B = squared_norms(self.rows.gradients.reshape(self.batch_size, -1)).sqrt()
        return self.outer.sizes().squares.sqrt().add_(rows_B).square_()

    def _inner_product(self) -> Tensor:
        """Return ⟨R, O⟩ of each example, in float64; a few examples at a time."""
        left, right, rows = self.outer.left, self.outer.right, self.rows
        found = []
        for part in in_portions(self, torch.arange(self.batch_size, device=left.device)):
            ids_BTS = rows.ids[part].unsqueeze(1).expand(-1, left.shape[1], -1)
            left_BTS = left[part].gather(2, ids_BTS).double()
            met_BTS = torch.bmm(right[part].double(), rows.gradients[part].double().mT)
            found.append((left_BTS * met_BTS).sum((1, 2)))
        return torch.cat(found)

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
