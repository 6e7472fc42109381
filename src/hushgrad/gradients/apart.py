"""Examples whose terms all but cancel, set apart from the others: they are summed in float64."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hushgrad.gradients.contribution import KEEP_NONE, Contribution, Plan

# Bytes of operands that are taken to float64 at once.
AT_ONCE = 1 << 26


@dataclass(frozen=True, eq=False)
class Apart(Contribution):
    """The gradients of `whole`, of which those of the examples `rows` are summed in float64.

    Guarantee: what such an example adds is what was measured, to the rounding of float64, however its terms cancel.
    """

    whole: Contribution
    rows: Tensor

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.whole.batch_size

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Those of the whole."""
        return self.whole.operands

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, measured anew."""
        return self.whole.measure(plan)

    @property
    def terms(self) -> int:
        """Those of the whole."""
        return self.whole.terms

    def term_squares(self) -> Tensor | None:
        """Return those of the whole."""
        return self.whole.term_squares()

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i; a few examples at a time are taken to float64."""
        total = self.whole.weighted_sum(weights_B.index_fill(0, self.rows, 0))
        for rows in in_portions(self.whole, self.rows):
            total += self.whole.select(rows).weighted_sum(weights_B[rows].double()).to(total.dtype)
        return total

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, *shape]`."""
        return self.whole.per_example()

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the whole with changed operands."""
        return self.whole.map_examples(change)

    def alone(self, place: int) -> Contribution:
        """Return the contribution of one example: in float64 if it is one of those that are summed so."""
        chosen = self.rows[self.rows == place]
        return self.whole.select(chosen) if len(chosen) else self.whole.alone(place)

    def zeroed(self, drop_B: Tensor) -> Contribution:
        """Return the same with the marked examples replaced by zeros; the others stay apart."""
        return Apart(self.whole.zeroed(drop_B), self.rows)


def in_portions(part: Contribution, rows: Tensor) -> tuple[Tensor, ...]:
    """Return the rows in portions whose operands fit into memory in float64."""
    bytes_of_one = part.nbytes_in_float64 // max(1, part.batch_size)
    return torch.split(rows, max(1, AT_ONCE // max(1, bytes_of_one)))


def measured_in_float64(part: Contribution, rows: Tensor, plan: Plan) -> Tensor:
    """Return the squared norms of some examples from their operands in float64, by which they are summed."""
    without = replace(plan, keep_bytes=KEEP_NONE)
    return torch.cat([part.select(some).measure(without)[0] for some in in_portions(part, rows)])
