"""Gradients that are a product of two operands over positions: formed and kept, formed and dropped, or never formed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from hushgrad.gradients.apart import Apart, in_portions, measured_in_float64
from hushgrad.gradients.contribution import Contribution, Plan, Way, chunks_of_examples
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.groups import Groups
from hushgrad.gradients.rounding import FAR, FAR_IN_FLOAT64, NEAR, UNIT, Sizes

FORMED_AT_ONCE = 1 << 26
"""Bytes of gradients that are formed at once on the way to those of groups."""


class Factored(Contribution):
    """Per-example gradients `[B, *shape]` in two operands, with what their forming costs in time and memory."""

    @property
    @abstractmethod
    def operands(self) -> tuple[Tensor, Tensor]:
        """Both operands, the examples first."""

    @property
    @abstractmethod
    def example_bytes(self) -> int:
        """How many bytes the gradient of one example takes."""

    @abstractmethod
    def times(self, plan: Plan) -> Mapping[Way, float]:
        """Return what each way takes for one example, in nanoseconds."""

    @abstractmethod
    def gram_products(self, plan: Plan) -> int:
        """Return the multiplications that Gram matrices of one example take, as if none of their halves were spared."""

    @property
    def batch_size(self) -> int:
        """B, the number of examples."""
        return self.operands[0].shape[0]

    @property
    def gradient_bytes(self) -> int:
        """How many bytes the gradients of all examples take."""
        return self.batch_size * self.example_bytes

    @property
    def grows_by(self) -> int:
        """How many bytes the gradients of all examples take beyond the operands."""
        first, second = self.operands
        return max(0, self.gradient_bytes - first.nbytes - second.nbytes)

    def way(self, plan: Plan) -> Way:
        """Return the way in which norms are computed: the fastest, unless the plan forces one."""
        return plan.choose(self.times(plan))

    def formed(self, plan: Plan) -> Tensor | None:
        """Return the gradients where forming them is the way and takes no more memory."""
        return self.per_example() if self.way(plan) == "instantiate" and self.grows_by == 0 else None

    @abstractmethod
    def sizes(self) -> Sizes:
        """Return how large the terms are of which the gradients are sums."""

    @abstractmethod
    def gram_norms(self, plan: Plan) -> Tensor:
        """Return the squared norms `[B]` from Gram matrices in the operands' dtype, summed in float64."""

    @property
    @abstractmethod
    def is_narrow(self) -> bool:
        """Whether Gram matrices in float32 keep the digits of a norm, unless its terms cancel."""

    @property
    @abstractmethod
    def drifts(self) -> bool:
        """Whether a sum of so many terms may drift in float32. The fastest way never leaves one to `weighted_sum`."""

    def measure(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]`, and `Dense` gradients where they were formed and may be kept.

        Examples whose terms all but cancel are measured in float64, and set `Apart` where they are summed so.
        """
        if self.way(plan) == "gram":
            norms_B, sizes = self._by_gram(plan)
        else:
            norms_B, kept = self.measure_formed(plan)
            if kept is not self:
                return norms_B, kept
            sizes = self.sizes()
        if self.operands[0].dtype == torch.float64:
            return self._by_forming(norms_B, sizes, plan), self
        far_B = sizes.above(norms_B, FAR, plan.floor)
        if self.drifts:
            far_B = torch.ones_like(far_B)
        rows = self._not_zero(far_B.nonzero().squeeze(1))
        if not len(rows):
            return norms_B, self
        return norms_B.index_copy(0, rows, measured_in_float64(self, rows, plan)), Apart(self, rows)

    def _by_gram(self, plan: Plan) -> tuple[Tensor, Sizes]:
        """Return squared norms from Gram matrices: in float64 unless float32 keeps their digits."""
        sizes = self.sizes()
        if self.operands[0].dtype == torch.float64:
            return self.gram_norms(plan), sizes
        if not self.is_narrow:
            every = torch.arange(self.batch_size, device=self.operands[0].device)
            return torch.cat([self.select(rows).gram_norms(plan) for rows in in_portions(self, every)]), sizes  # type: ignore[attr-defined]
        norms_B = self.gram_norms(plan)
        near = sizes.above(norms_B, NEAR, plan.floor).nonzero().squeeze(1)
        for rows in in_portions(self, near) if len(near) else ():
            norms_B[rows] = self.select(rows).gram_norms(plan)  # type: ignore[attr-defined]
        return norms_B, sizes

    def _by_forming(self, norms_B: Tensor, sizes: Sizes, plan: Plan) -> Tensor:
        """Return the norms, in float64, with those of gradients that are formed where even its digits are lost.

        Where not even these can be told, norms are taken as large as rounding may make the sum.
        """
        for row in sizes.above(norms_B, FAR_IN_FLOAT64, plan.floor).nonzero().squeeze(1).tolist():
            one = self.map_examples(lambda operand, row=row: operand[row : row + 1])  # type: ignore[misc]
            norms_B[row] = one.per_example().square().sum()
        rounded_B = sizes.squares.sqrt().mul_(self.terms * UNIT)
        return norms_B.clamp(min=0).sqrt().add_(rounded_B).square_()

    @property
    @abstractmethod
    def terms(self) -> int:
        """How many terms are summed for each value of a gradient."""

    def term_squares(self) -> Tensor | None:
        """Return the squared sizes `[B]` of the terms."""
        return self.sizes().squares

    def _not_zero(self, rows: Tensor) -> Tensor:
        """Return the rows without those of which one operand is zero: they add nothing."""
        if not len(rows):
            return rows
        some = [(operand[rows] != 0).flatten(1).any(1) for operand in self.operands]
        return rows[some[0] & some[1]]

    def of_groups(self, groups: Groups) -> Contribution:
        """Return the gradients of groups, formed a few examples at a time and added up."""
        groups.require(self.batch_size)
        total: Tensor | None = None
        for part in chunks_of_examples(self.batch_size, self.example_bytes, FORMED_AT_ONCE):
            formed = self.map_examples(lambda operand, part=part: operand[part]).per_example()  # type: ignore[misc]
            if total is None:
                total = formed.new_zeros(groups.count, *formed.shape[1:])
            groups.add_to(total, formed, part)
        assert total is not None  # a batch without examples is not grouped
        return Dense(total)

    def measure_formed(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]` of gradients that are formed: all and kept, or by the budget's portions."""
        if self.grows_by <= plan.keep_bytes:
            return Dense(self.per_example()).measure(plan)
        norms = [
            Dense(self.map_examples(lambda operand, part=part: operand[part]).per_example()).measure(plan)[0]  # type: ignore[misc]
            for part in chunks_of_examples(self.batch_size, self.example_bytes, plan.keep_bytes)
        ]
        return torch.cat(norms), self
