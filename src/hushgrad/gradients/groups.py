"""Several examples of a batch as one: the records of a user, whose gradient is clipped as a whole.

Norms of sums need the terms between the examples of a group, so a group's factored gradients are joined along their
positions, as those of several uses of one parameter are, and measured like those of any example.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.errors import PrivacyUnitError


@dataclass(frozen=True, eq=False)
class Groups:
    """Which group each example of a batch belongs to.

    Attributes:
        numbers: each example's group, `[R]`, int64, ascending from 0: those of one stand together.
        sizes: how many examples each group has, at least 1.
        averages: whether a group's gradient is the mean over its examples, or else the sum.
    """

    numbers: Tensor
    sizes: tuple[int, ...]
    averages: bool = False

    @classmethod
    def of(cls, owners: Sequence[int], *, averages: bool, device: torch.device) -> Groups:
        """Return the groups of examples with equal owners, which stand together."""
        sizes: list[int] = []
        for place, owner in enumerate(owners):
            if place and owner == owners[place - 1]:
                sizes[-1] += 1
            else:
                sizes.append(1)
        counts = torch.tensor(sizes, dtype=torch.int64)
        numbers = torch.arange(len(sizes)).repeat_interleave(counts)
        return cls(numbers.to(device), tuple(sizes), averages)

    @property
    def count(self) -> int:
        """The number of groups."""
        return len(self.sizes)

    @property
    def most(self) -> int:
        """The most examples that a group has."""
        return max(self.sizes, default=0)

    @property
    def are_single(self) -> bool:
        """Whether each group has one example."""
        return self.most == 1

    def require(self, examples: int) -> None:
        """Refuse another number of examples than are in groups.

        Raises `PrivacyUnitError`.
        """
        if examples != len(self.numbers):
            raise PrivacyUnitError(
                f"saw {examples} examples where {len(self.numbers)} records of users were handed out, so it is not "
                f"known whose they are",
                cure="Give the model one row for each row of the item",
            )

    def weighted(self, operand: Tensor) -> Tensor:
        """Return an operand `[R, ...]` times each example's weight in its group: 1 over its size for a mean."""
        if not self.averages or self.are_single:
            return operand
        return operand * self._weights(operand).reshape(-1, *[1] * (operand.ndim - 1))

    def add_to(self, total: Tensor, gradients: Tensor, part: slice = slice(None)) -> None:
        """Add gradients of a part of the examples, weighted, to those of their groups, `[groups, ...]`."""
        weighted = gradients
        if self.averages and not self.are_single:
            weighted = gradients * self._weights(gradients)[part].reshape(-1, *[1] * (gradients.ndim - 1))
        total.index_add_(0, self.numbers.to(total.device)[part], weighted)

    def blocks(self, operand: Tensor) -> Tensor:
        """Return an operand `[R, T, ...]` as `[groups, most · T, ...]`, zeros where a group has fewer examples."""
        if self.are_single:
            return operand
        if len(set(self.sizes)) == 1:
            return operand.reshape(self.count, -1, *operand.shape[2:])
        numbers = self.numbers.to(operand.device)
        sizes = torch.tensor(self.sizes, device=operand.device)
        within_R = torch.arange(len(numbers), device=operand.device) - (sizes.cumsum(0) - sizes)[numbers]
        padded = operand.new_zeros(self.count, self.most, *operand.shape[1:])
        padded[numbers, within_R] = operand
        return padded.flatten(1, 2)

    def _weights(self, like: Tensor) -> Tensor:
        sizes = torch.tensor(self.sizes, device=like.device, dtype=like.real.dtype)
        return sizes.reciprocal()[self.numbers.to(like.device)]
