"""Per-example gradients of a matrix as sums of outer products: linear layers, tied heads, unfolded convolutions."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan, Way
from hushgrad.gradients.cuda import dispatch
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.factored import Factored
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.placement import Put
from hushgrad.gradients.rounding import LONG, POSITIONS, SMALL, WIDE, WIDTH, Sizes, product_of_squares, squared_norms

# Positions in a block of a Gram matrix: below this, products of blocks are too small to be fast.
SMALLEST_BLOCK = 32


@dataclass(eq=False)  # not frozen, which takes three times as long to make: there is one for each use
class OuterProducts(Factored):
    """`G_i = Σ_t left[i, t] ⊗ right[i, t]`, a `[p, d]` matrix per example; left `[B, T, p]`, right `[B, T, d]`."""

    left: Tensor
    right: Tensor

    @property
    def operands(self) -> tuple[Tensor, Tensor]:
        """Left and right."""
        return self.left, self.right

    @property
    def example_bytes(self) -> int:
        """How many bytes the gradient of one example takes."""
        return self.left.shape[2] * self.right.shape[2] * self.left.element_size()

    def way(self, plan: Plan) -> Way:
        """Return the way in which norms are computed: the fastest, unless the plan forces one."""
        if plan.way is None and self.left.shape[1] == 1:
            return "product"  # next to nothing to do, and of many layers the choice itself would cost more
        return super().way(plan)

    def times(self, plan: Plan) -> Mapping[Way, float]:
        """Return what each way takes for one example, its part in the sum included, in nanoseconds."""
        machine, positions, p, d = plan.machine, self.left.shape[1], self.left.shape[2], self.right.shape[2]
        product = machine.multiply_add * positions * p * d
        forming = product if self.grows_by <= plan.keep_bytes else 2 * product
        ways: dict[Way, float] = {"product": product} if positions == 1 else {}
        return ways | {
            "gram": machine.gram_multiply_add * self.gram_products(plan) * (1 if self.is_narrow else WIDE) + product,
            "instantiate": machine.formed * p * d + forming,
        }

    def gram_products(self, plan: Plan) -> int:
        """Return the multiplications that Gram matrices of one example take, as if none of their halves were spared."""
        return self.left.shape[1] ** 2 * (self.left.shape[2] + self.right.shape[2])

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and what is to be summed."""
        if self.way(plan) != "product":
            return super().measure(plan)
        widths = self.left.shape[2], self.right.shape[2]
        left_B, right_B = (squared_norms(side.squeeze(1)) for side in (self.left, self.right))
        return product_of_squares(left_B, right_B, widths, self.left.dtype, plan.floor), self

    def measure_formed(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]` of gradients that are formed, and these where they may be kept."""
        if not dispatch.measures(self.left, self.right):
            return super().measure_formed(plan)
        norms_B, gradients = dispatch.instantiated_norms(self.left, self.right, keep=self.grows_by <= plan.keep_bytes)
        return norms_B, self if gradients is None else Dense(gradients)

    def sizes(self) -> Sizes:
        """Return how large the outer products are."""
        squares = squared_norms(self.left), squared_norms(self.right)
        return Sizes.of(*squares, (self.left.shape[2], self.right.shape[2]), self.left.dtype)

    def term_squares(self) -> Tensor | None:
        """Return the squared sizes `[B]` of the outer products, if there is more than one."""
        return None if self.left.shape[1] == 1 else super().term_squares()

    @property
    def is_narrow(self) -> bool:
        """Whether there are few positions of few values."""
        positions, p = self.left.shape[1:]
        return positions <= POSITIONS and max(p, self.right.shape[2]) <= WIDTH

    @property
    def drifts(self) -> bool:
        """Whether many positions are summed in a product so small that it is not cut into blocks."""
        return self.left.shape[1] > LONG and self.left.shape[2] * self.right.shape[2] < SMALL

    @property
    def terms(self) -> int:
        """The number of positions, of the whole batch: they are summed in one product."""
        return self.left.shape[0] * self.left.shape[1]

    def gram_norms(self, plan: Plan) -> Tensor:
        """Return ‖G_i‖² = ⟨L Lᵀ, R Rᵀ⟩."""
        by_kernel = dispatch.measures(self.left, self.right)
        return (dispatch.gram_norms if by_kernel else _gram)(self.left, self.right)

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

    def of_groups(self, groups: Groups) -> Contribution:
        """Return the products of a group's examples one behind the other; formed gradients where these take less."""
        groups.require(self.batch_size)
        bytes_of_blocks = groups.count * groups.most * (self.nbytes // max(1, self.batch_size))
        if bytes_of_blocks > max(2 * self.nbytes, groups.count * self.example_bytes):
            return super().of_groups(groups)
        return OuterProducts(groups.blocks(groups.weighted(self.left)), groups.blocks(self.right))

    def in_row(self, put: Put) -> Contribution:
        """Return the products of the part of the matrix that is here."""
        return OuterProducts(put(self.left, {0: 2}), put(self.right, {1: 2}))

    @property
    def transposed(self) -> OuterProducts:
        """The same gradients for the transposed matrix."""
        return OuterProducts(self.right, self.left)


def _gram(left: Tensor, right: Tensor) -> Tensor:
    """Return ⟨L Lᵀ, R Rᵀ⟩, `[B]`.

    Gram matrices are symmetric, so blocks above the diagonal count twice and those below are not computed: halves of
    the positions against each other, then halves of the halves, down to blocks of a few positions.
    """
    batch, positions = left.shape[:2]
    norms_B, blocks = left.new_zeros(batch, dtype=torch.float64), 1
    can_cut = left.is_contiguous() and right.is_contiguous()  # else the blocks would be copied
    while can_cut and positions % (2 * blocks) == 0 and positions // (2 * blocks) >= SMALLEST_BLOCK:
        halves = [(part[:, :, 0].flatten(0, 1), part[:, :, 1].flatten(0, 1)) for part in _cut(left, right, blocks, 2)]
        above, across = (torch.bmm(first, second.mT) for first, second in halves)
        norms_B += 2 * inner_product(above, across, batch)
        blocks *= 2
    left_btp, right_btd = (part.flatten(0, 2) for part in _cut(left, right, blocks, 1))
    products, others = torch.bmm(left_btp, left_btp.mT), torch.bmm(right_btd, right_btd.mT)
    return norms_B + inner_product(products, others, batch)


def inner_product(gram: Tensor, other: Tensor, batch: int) -> Tensor:
    """Return the inner products of matrices `[B·n, t, s]`, n blocks for each example: `[B]`, rows summed in float64.

    The first is overwritten.
    """
    return gram.mul_(other).sum(2).view(batch, -1).sum(1, dtype=torch.float64)


def _cut(left: Tensor, right: Tensor, blocks: int, parts: int) -> tuple[Tensor, Tensor]:
    """Return both with their positions cut, `[B, blocks, parts, t, ...]`."""
    shape = (left.shape[0], blocks, parts, left.shape[1] // (blocks * parts))
    return left.reshape(*shape, left.shape[2]), right.reshape(*shape, right.shape[2])
