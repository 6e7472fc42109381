"""Per-example gradients of a matrix as sums of outer products: linear layers, tied heads, unfolded convolutions."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan, Way, chunks_of_examples
from hushgrad.gradients.dense import Dense

# Below this share of Σ_t ‖left_t‖²‖right_t‖², a norm from the Gram matrices has lost too many digits to cancellation.
CANCELLATION = 0.02


@dataclass(frozen=True, eq=False)
class OuterProducts(Contribution):
    """`G_i = Σ_t left[i, t] ⊗ right[i, t]`, a `[p, d]` matrix per example; left `[B, T, p]`, right `[B, T, d]`."""

    left: Tensor
    right: Tensor

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.left.shape[0]

    def way(self, plan: Plan) -> Way:
        """Return the way in which norms are computed: by the count of operations, unless the plan forces one."""
        positions, p, d = self.left.shape[1], self.left.shape[2], self.right.shape[2]
        if positions == 1 and plan.way in (None, "product"):
            return "product"
        if plan.way in ("gram", "instantiate"):
            return plan.way
        return "gram" if positions * (p + d) <= p * d else "instantiate"

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and `Dense` gradients where they were formed and may be kept."""
        way = self.way(plan)
        if way == "product":
            left_Bp, right_Bd = self.left.squeeze(1), self.right.squeeze(1)
            return (left_Bp * left_Bp).sum(1) * (right_Bd * right_Bd).sum(1), self
        if way == "gram":
            return self._gram_norms(), self
        bytes_per_example = self.left.shape[2] * self.right.shape[2] * self.left.element_size()
        if bytes_per_example * self.batch_size <= plan.keep_bytes:
            return Dense(self.per_example()).measure(plan)
        norms = [
            Dense(torch.bmm(self.left[part].mT, self.right[part])).measure(plan)[0]
            for part in chunks_of_examples(self.batch_size, bytes_per_example, plan.keep_bytes)
        ]
        return torch.cat(norms), self

    def _gram_norms(self) -> Tensor:
        """‖G_i‖² = ⟨L Lᵀ, R Rᵀ⟩; examples in which the terms cancel are computed again from their gradient."""
        left_BTT = torch.bmm(self.left, self.left.mT)
        right_BTT = torch.bmm(self.right, self.right.mT)
        norms_B = (left_BTT * right_BTT).sum((1, 2))
        diagonal_B = (left_BTT.diagonal(dim1=1, dim2=2) * right_BTT.diagonal(dim1=1, dim2=2)).sum(1)
        cancelled = (norms_B < CANCELLATION * diagonal_B).nonzero().squeeze(1)
        for row in cancelled.tolist():
            gradient = self.left[row].mT @ self.right[row]
            norms_B[row] = (gradient * gradient).sum()
        return norms_B

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i as one matrix product; the weights go into the narrower operand."""
        weights_B11 = weights_B.to(self.left.dtype).reshape(-1, 1, 1)
        left, right = self.left, self.right
        if left.shape[2] <= right.shape[2]:
            left = left * weights_B11
        else:
            right = right * weights_B11
        return left.flatten(0, 1).mT @ right.flatten(0, 1)

    def per_example(self) -> Tensor:
        """Return the gradients, `[B, p, d]`."""
        return torch.bmm(self.left.mT, self.right)

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the outer products of the changed operands."""
        return OuterProducts(change(self.left), change(self.right))

    @property
    def transposed(self) -> OuterProducts:
        """The same gradients for the transposed matrix."""
        return OuterProducts(self.right, self.left)
