"""How weighted gradients of many examples are added up: in the dtype of their operands, or in float64 with a bound.

`InFloat64` knows how far rounding may have taken its sums from the exact ones. Products of float32 values are exact in
float64, and n additions, in whatever order, err by at most γ_n = n·u / (1 − n·u) of the sum of the sizes of their terms
(Higham, Accuracy and Stability of Numerical Algorithms, §3.1 and §4.2; u = 2**-53). The norm of these sizes is at most
Σ_i |weights_i| · (the sum of the norms of example i's terms), which is Σ_i |weights_i| · ‖G_i‖ but for examples whose
terms cancel, whose terms are measured.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.stacking import Stacked

_UNIT = 2.0**-53
_MEASURED = 1 + 2.0**-6
"""Norms are measured in float32, to a part in 10,000, and γ_n is a little more than n·u."""
_AT_ONCE = 1 << 22  # bytes of operands in float64
_BESIDES = 8
"""Additions beside those that are counted: weights, products of float64 values, and sums of parts."""


class AsTheyCome:
    """Sums in the dtype of the operands, at least float32, of whose rounding nothing is known."""

    @property
    def error(self) -> float:
        """How far rounding may have taken the sums from the exact ones, in units of the gradient."""
        return math.inf

    def sum(self, part: Contribution, weights_B: Tensor) -> Tensor:
        """Return Σ_i weights_B[i] · G_i in the parameter's shape."""
        return part.weighted_sum(weights_B)

    def sums(self, group: Stacked, weights_B: Tensor) -> Tensor:
        """Return the same for each of a stack of parameters."""
        return group.weighted_sums(weights_B)

    def term_squares(self, part: Contribution) -> Tensor | None:
        """Return what `note` wants to know of a contribution beside its norms, `[B]`; None for nothing."""
        return None

    def note(self, terms: Sequence[Tensor | None], roots_GB: Tensor, weights_GB: Tensor) -> None:
        """Take note of what is summed: norms and weights of each group, and `term_squares` of it, added up."""


class InFloat64(AsTheyCome):
    """Sums of one step in float64, and how far rounding may have taken them from the exact ones.

    Guarantee: the L2 distance of all sums together from the exact sums of what was weighed is at most `error`.
    """

    def __init__(self) -> None:
        self._most_terms = 0
        self._parts = 0
        self._sizes = 0.0

    @property
    def error(self) -> float:
        """The bound so far, in units of the gradient; of all sums that were added up since the object was made."""
        return (self._most_terms + self._parts + _BESIDES) * _UNIT * _MEASURED * self._sizes

    def sum(self, part: Contribution, weights_B: Tensor) -> Tensor:
        """Return the sum; a few examples at a time are taken to float64."""
        weights_B = weights_B.double()
        total: Tensor | None = None
        # cuDNN may transform the operands of a convolution (Winograd, Fourier), which the bound does not cover.
        with torch.backends.cudnn.flags(enabled=False):
            begin, bytes_of_one = 0, max(1, 2 * part.nbytes // max(1, part.batch_size))
            while begin < part.batch_size or total is None:
                # Copies that stay in the caches, unless adding up the sums would cost more.
                at_once = max(1, max(_AT_ONCE, 0 if total is None else total.nbytes) // bytes_of_one)
                rows = slice(begin, begin + at_once)
                some = part.map_examples(lambda operand, rows=rows: _wide(operand[rows]))  # type: ignore[misc]
                self._count(some.terms)
                added = some.weighted_sum(weights_B[rows])
                total = added if total is None else total.add_(added)
                begin += at_once
        return total

    def sums(self, group: Stacked, weights_B: Tensor) -> Tensor:
        """Return the sums of a stack, whose operands are small."""
        self._count(len(weights_B))
        return group.widened().weighted_sums(weights_B.double())

    def term_squares(self, part: Contribution) -> Tensor | None:
        """Return the squared sizes of the terms of each example."""
        return part.term_squares()

    def note(self, terms: Sequence[Tensor | None], roots_GB: Tensor, weights_GB: Tensor) -> None:
        """Add up the sizes of the terms of what is summed."""
        self._parts += 1  # the sums of physical batches are added up, too
        for terms_B, roots_B, weights_B in zip(terms, roots_GB.unbind(), weights_GB.unbind(), strict=True):
            squares_B = roots_B.detach().double().square()
            if terms_B is not None:
                squares_B = squares_B + terms_B.detach().to(squares_B)
            sizes_B = weights_B.detach().double().abs() * squares_B.sqrt()
            self._sizes += float(sizes_B.masked_fill(weights_B == 0, 0).sum())

    def _count(self, terms: int) -> None:
        self._most_terms = max(self._most_terms, terms)
        self._parts += 1


def _wide(operand: Tensor) -> Tensor:
    return operand.double() if operand.is_floating_point() else operand
