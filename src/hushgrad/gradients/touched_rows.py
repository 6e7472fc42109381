"""Per-example gradients of a table of which only the rows that are touched are ever summed: huge embeddings."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.rounding import squared_norms
from hushgrad.gradients.rows import OfRows, Rows


@dataclass(frozen=True, eq=False)
class TouchedRows(OfRows):
    """The gradients of `rows`, whose sum is sparse: `[num_rows, d]` in torch's COO layout, of touched rows alone.

    An example touches a row where its gradient is not 0. Each row of an example stands in one place of `rows`.

    Guarantee: measuring and adding up take neither memory nor time by the number of rows of the table.
    """

    @classmethod
    def of(cls, rows: Rows) -> TouchedRows:
        """Return the same gradients, those of a row that an example looked up more than once added up."""
        return cls(rows.once())

    @property
    def touched(self) -> Tensor:
        """Which places hold a row that the example touches, `[B, T]`."""
        return (self.rows.gradients != 0).any(2)

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, over all rows, and the same contribution."""
        return squared_norms(self.rows.gradients.reshape(self.batch_size, -1)), self

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i, `[num_rows, d]`, sparse and coalesced."""
        touched, gradients = self.touched, self.rows.gradients
        weights_BT = weights_B.to(gradients.dtype).unsqueeze(1).expand_as(touched)
        ids, places = torch.unique(self.rows.ids[touched], return_inverse=True)
        sums = gradients.new_zeros(len(ids), gradients.shape[-1])
        sums.index_add_(0, places, gradients[touched] * weights_BT[touched].unsqueeze(1))
        return sparse_rows(ids, sums, self.rows.num_rows)

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, num_rows, d]`, dense."""
        return self.rows.per_example()

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the rows with changed operands."""
        return TouchedRows(Rows(change(self.rows.ids), change(self.rows.gradients), self.rows.num_rows))


def sum_of_looked_up(parts: Sequence[Rows]) -> Tensor:
    """Return the sum of the gradients of all examples of some lookups in one table, `[num_rows, d]`, sparse."""
    with torch.no_grad():
        ids = torch.cat([part.ids.flatten() for part in parts])
        gradients = torch.cat([part.gradients.flatten(0, 1) for part in parts])
        return sparse_rows(ids, gradients, parts[0].num_rows, is_coalesced=False).coalesce()


def sparse_rows(ids: Tensor, values: Tensor, num_rows: int, *, is_coalesced: bool = True) -> Tensor:
    """Return `[num_rows, d]` with `values` `[k, d]` in the rows `ids` `[k]`, ascending and each once, and zeros else.

    Where it is not coalesced a row may come several times: its values are added up.
    """
    size = (num_rows, *values.shape[1:])
    return torch.sparse_coo_tensor(ids.unsqueeze(0), values, size, is_coalesced=is_coalesced, check_invariants=False)


def rows_of(total: Tensor) -> tuple[Tensor, Tensor]:
    """Return which rows a sparse sum has, ascending, `[k]`, and their values `[k, d]`."""
    merged = total.coalesce()
    return merged.indices().squeeze(0), merged.values()
