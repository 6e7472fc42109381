"""Outer products whose operands stay in 16 bits until they are measured and summed.

What lives from a backward until the norms of all layers are known is the operands. Those of a model that computes in 16
bits are its own activations and output gradients, which several layers may share; in 32 bits they would be copies, and
take two or more times the memory.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from hushgrad.gradients.apart import Apart
from hushgrad.gradients.contribution import Contribution, Plan, accumulation_dtype
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.placement import Put

LARGE_OPERANDS = 1 << 18
"""Values of both operands from which on a second conversion costs little beside the products."""


@dataclass(frozen=True, eq=False)
class Narrow(Contribution):
    """`held`, whose operands are converted whenever they are needed, exactly, and for that time alone.

    Guarantee: norms and sums have the bits that they have of operands in 32 bits.
    """

    held: Contribution

    @property
    def wide(self) -> Contribution:
        """The same with operands in at least float32, of which nothing else holds any."""
        return self.held.map_examples(widened)

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.held.batch_size

    @property
    def operands(self) -> tuple[Tensor, ...]:
        """Those that are held."""
        return self.held.operands

    @property
    def terms(self) -> int:
        """Those of what is held."""
        return self.held.terms

    def term_squares(self) -> Tensor | None:
        """Return those of the wide operands, `[B]`."""
        return self.wide.term_squares()

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and gradients where they were formed and may be kept."""
        wide = self.wide
        squares_B, found = wide.measure(plan)
        if found is wide:
            return squares_B, self
        if isinstance(found, Apart) and found.whole is wide:
            return squares_B, Apart(self, found.rows)
        return squares_B, found

    def formed(self, plan: Plan) -> Tensor | None:
        """Return the gradients where forming them is the way, and takes no more memory than what is held."""
        if self._shapes.per_example().nbytes > self.nbytes or self._shapes.formed(plan) is None:
            return None
        return self.wide.formed(plan)

    @cached_property
    def _shapes(self) -> Contribution:
        return self.held.map_examples(lambda operand: widened(operand.to("meta")))

    def weighted_sum(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i in the parameter's shape."""
        return self.wide.weighted_sum(weights_B)

    def per_example(self) -> Tensor:
        """Return the gradients themselves, `[B, *shape]`."""
        return self.wide.per_example()

    def map_examples(self, change: Callable[[Tensor], Tensor]) -> Contribution:
        """Return the same of the changed operands."""
        return Narrow(self.held.map_examples(change))

    def of_groups(self, groups: Groups) -> Contribution:
        """Return those of groups, with operands in 32 bits: weights would be rounded in 16."""
        return self.wide.of_groups(groups)

    def in_row(self, put: Put) -> Contribution:
        """Return the same of the operands of this process's part."""
        return Narrow(self.held.in_row(put))


def widened(tensor: Tensor) -> Tensor:
    """Return a floating tensor in at least float32. Most are so already, and a `to` that does nothing has its price."""
    if tensor.dtype is torch.float32 or not tensor.is_floating_point():
        return tensor
    return tensor.to(accumulation_dtype(tensor.dtype))


def outer_products(left: Tensor, right: Tensor) -> Contribution:
    """Return `G_i = Σ_t left[i, t] ⊗ right[i, t]` of operands `[B, T, p]` and `[B, T, d]` in any precision."""
    if left.element_size() == right.element_size() == 2 and left.numel() + right.numel() >= LARGE_OPERANDS:
        return Narrow(OuterProducts(left, right))
    return OuterProducts(widened(left), widened(right))
