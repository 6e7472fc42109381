"""Per-example gradients kept as they are: biases, norm scales, tokens, and whatever has no cheaper form."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.placement import Put
from hushgrad.gradients.rounding import squared_norms


@dataclass(eq=False)  # not frozen, which takes three times as long to make: there is one for each use
class Dense(Contribution):
    """`gradients[i]` is the gradient of example i: `[B, *shape]`."""

    gradients: Tensor

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.gradients.shape[0]

    @property
    def operands(self) -> tuple[Tensor]:
        """The gradients."""
        return (self.gradients,)

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]` and itself."""
        return squared_norms(self.gradients.reshape(self.batch_size, -1)), self

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i as one matrix-vector product."""
        flat_BK = self.gradients.reshape(self.batch_size, -1)
        return (weights_B.to(flat_BK.dtype) @ flat_BK).reshape(self.gradients.shape[1:])

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, *shape]`."""
        return self.gradients

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return `Dense` of the changed gradients."""
        return Dense(change(self.gradients))

    def of_groups(self, groups: Groups) -> Contribution:
        """Return the sums over groups."""
        groups.require(self.batch_size)
        if groups.are_single:
            return self
        total = self.gradients.new_zeros(groups.count, *self.gradients.shape[1:])
        groups.add_to(total, self.gradients)
        return Dense(total)

    def in_row(self, put: Put) -> Contribution:
        """Return the gradients by the part of the parameter that is here."""
        return Dense(put(self.gradients, {dim - 1: dim for dim in range(1, self.gradients.ndim)}))
