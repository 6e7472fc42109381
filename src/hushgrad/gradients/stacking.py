"""Small contributions of one shape, measured and summed together: one call for many parameters.

A model with hundreds of small layers spends its time in calls and not in arithmetic.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.outer import OuterProducts
from hushgrad.gradients.rounding import product_of_squares, squared_norms

# Values of an operand up to which copying it is cheaper than a few calls of its own, and how many make a group.
SMALL_OPERAND, SMALLEST_GROUP = 1 << 14, 3


class Stacked(ABC):
    """Contributions of n parameters, stacked."""

    names: tuple[str, ...]

    @abstractmethod
    def measure(self, plan: Plan) -> Tensor:
        """Return the squared norms over all of the parameters, `[B]`, in float64."""

    @abstractmethod
    def widened(self) -> Stacked:
        """Return the same in float64."""

    @abstractmethod
    def weighted_sums(self, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i for each parameter, `[n, *shape]`."""


@dataclass(frozen=True, eq=False)
class AlikeProducts(Stacked):
    """Outer products at one position, `left [n, B, p]` and `right [n, B, d]`."""

    names: tuple[str, ...]
    left: Tensor
    right: Tensor

    def measure(self, plan: Plan) -> Tensor:
        """Return Σ_n ‖left‖²‖right‖²."""
        widths = self.left.shape[2], self.right.shape[2]
        squares = squared_norms(self.left), squared_norms(self.right)
        return product_of_squares(*squares, widths, self.left.dtype, plan.floor).sum(0)

    def widened(self) -> Stacked:
        """Return the same in float64."""
        return AlikeProducts(self.names, self.left.double(), self.right.double())

    def weighted_sums(self, weights_B: Tensor) -> Tensor:
        """Return one batched product, the weights in the narrower operand."""
        weights_B1 = weights_B.to(self.left.dtype).unsqueeze(1)
        if self.left.shape[2] <= self.right.shape[2]:
            return torch.bmm((self.left * weights_B1).mT, self.right)
        return torch.bmm(self.left.mT, self.right * weights_B1)


@dataclass(frozen=True, eq=False)
class AlikeDense(Stacked):
    """Gradients themselves, `[n, B, *shape]`."""

    names: tuple[str, ...]
    gradients: Tensor

    def measure(self, plan: Plan) -> Tensor:
        """Return the sum of squares."""
        return squared_norms(self.gradients.flatten(2)).sum(0)

    def widened(self) -> Stacked:
        """Return the same in float64."""
        return AlikeDense(self.names, self.gradients.double())

    def weighted_sums(self, weights_B: Tensor) -> Tensor:
        """Return one product of a vector with matrices."""
        flat_nBK = self.gradients.flatten(2)
        sums_nK = torch.matmul(weights_B.to(flat_nBK.dtype), flat_nBK)
        return sums_nK.reshape(len(self.names), *self.gradients.shape[2:])


def group_by_shape(contributions: Mapping[str, Contribution], plan: Plan) -> tuple[list[Stacked], list[str]]:
    """Return groups of small contributions of one shape, and the names of those that stay alone."""
    groups: dict[tuple[object, ...], list[str]] = {}
    alone: list[str] = []
    for name, part in contributions.items():
        kind = _small_kind(part, plan)
        if kind is None:
            alone.append(name)
        else:
            groups.setdefault(kind, []).append(name)
    found: list[Stacked] = []
    for names in groups.values():
        if len(names) < SMALLEST_GROUP:
            alone += names
        else:
            found.append(_stacked(names, [contributions[name] for name in names]))
    return found, alone


def _small_kind(part: Contribution, plan: Plan) -> tuple[object, ...] | None:
    """Return what the parts of one stack have in common; None where it does not pay or the plan wants another way."""
    # Asked of every parameter in every step: written out, without loops over the operands.
    if isinstance(part, OuterProducts):
        left, right = part.left, part.right
        is_small = left.numel() <= SMALL_OPERAND and right.numel() <= SMALL_OPERAND
        if is_small and part.way(plan) == "product":
            return type(part), left.shape, right.shape, left.dtype, left.device
    elif isinstance(part, Dense):
        gradients = part.gradients
        if gradients.ndim > 1 and gradients.numel() <= SMALL_OPERAND:
            return type(part), gradients.shape, gradients.dtype, gradients.device
    return None


def _stacked(names: Sequence[str], parts: Sequence[Contribution]) -> Stacked:
    dense = [part.gradients for part in parts if isinstance(part, Dense)]
    if dense:
        return AlikeDense(tuple(names), torch.stack(dense))
    products = [part for part in parts if isinstance(part, OuterProducts)]
    left = torch.cat([part.left for part in products], 1).transpose(0, 1)
    right = torch.cat([part.right for part in products], 1).transpose(0, 1)
    return AlikeProducts(tuple(names), left, right)
