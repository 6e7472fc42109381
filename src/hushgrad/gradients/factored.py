"""Gradients that are a product of two operands over positions: formed and kept, formed and dropped, or never formed."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan, Way, chunks_of_examples
from hushgrad.gradients.dense import Dense


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

    def measure_formed(self, plan: Plan) -> tuple[Tensor, Contribution]:
        """Return the squared norms `[B]` of gradients that are formed: all and kept, or by the budget's portions."""
        if self.grows_by <= plan.keep_bytes:
            return Dense(self.per_example()).measure(plan)
        norms = [
            Dense(self.map_examples(lambda operand, part=part: operand[part]).per_example()).measure(plan)[0]  # type: ignore[misc]
            for part in chunks_of_examples(self.batch_size, self.example_bytes, plan.keep_bytes)
        ]
        return torch.cat(norms), self
