"""Where squared norms lose their digits, and what is done about it.

- *Many values*: a sum in float32 that goes on over millions of values drifts (10⁷ equal ones: 0.8%). So squares are
  summed in float32 over blocks, and the blocks in float64.
- *Cancellation*: terms of which only a small part is left. Up to `NEAR`, float32 keeps the digits; beyond it norms are
  taken in float64; beyond `FAR` the gradient is summed in float64, too, so that what was measured is what is added.
- *Underflow*: a product below 2⁻¹²⁶ may be lost in float32, and count where it meets a huge factor or a tiny clip
  norm. Such examples are measured and summed in float64.

The constants are bounded by measurement: tests/gradients/test_numbers.py.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 1024
"""Values whose squares float32 sums: to 4e-7 of the norm, equal ones too."""

NEAR, FAR = 60.0, 2.0**14
"""How often the squared sizes of all terms together may hold the squared norm."""

POSITIONS, WIDTH = 48, 1024
"""Up to so many positions of so many values each, Gram matrices in float32 keep the digits of a norm."""

WIDE = 2.5
"""How many times as long Gram matrices take in float64."""

LONG, SMALL = 256, 1 << 12
"""More terms than these drift where float32 sums them one by one, as products of matrices so small do."""

TINY = {torch.float32: 2.0**-126, torch.float64: 2.0**-1022}
"""What one product may lose to underflow."""

FLOOR = 1e-18
"""A squared norm below which digits that are lost do not count, unless a clip norm is smaller than its root."""

MANY = 1e9
"""More values than a gradient has."""

SHARE = 1e-6
"""The share of a squared norm that may be lost."""

FAINT = MANY * TINY[torch.float32] / SHARE
"""A squared norm below which squares that underflow may be more than `SHARE` of it."""

LEAST_WEIGHT = 2.0**-100
"""Below it, products with a weight lose digits in float32."""

UNIT, FAR_IN_FLOAT64 = 2.0**-52, 1e8
"""The rounding of float64, and how often the sizes may hold the norm until the gradient itself is formed."""


class Sizes(NamedTuple):
    """How large the terms of a gradient are, `[B]` in float64 both.

    `squares` is the square of the sum of the terms' norms, `lost` what underflow may take from a squared norm.
    """

    squares: Tensor
    lost: Tensor

    @classmethod
    def of(cls, left_BT: Tensor, right_BT: Tensor, widths: tuple[int, int], dtype: torch.dtype) -> Sizes:
        """Return the sizes of terms that are products, from the squared norms of their factors of some widths."""
        positions = left_BT.shape[1]
        sums_B = (left_BT * right_BT).sqrt_().sum(1)
        lost_B = right_BT.sum(1).mul_(widths[0]).add_(left_BT.sum(1), alpha=widths[1]).add_(positions)
        return cls(sums_B.square_(), lost_B.mul_(positions * TINY[dtype]))

    def above(self, norms_B: Tensor, times: float, floor: float) -> Tensor:
        """Return where rounding or underflow may show: the sizes hold the norm more than `times` times.

        A squared norm below `floor` counts as `floor`.
        """
        return torch.maximum(self.squares / times, self.lost / SHARE) > norms_B.clamp(min=floor)


def squared_norms(values_BK: Tensor) -> Tensor:
    """Return the sums of squares over the last dimension, in float64: by blocks in float32, then in float64."""
    count = values_BK.shape[-1]
    if values_BK.stride(-1) != 1:
        values_BK = values_BK.contiguous()  # else squares are added one by one, not in the lanes of a vector
    if count <= BLOCK or values_BK.dtype == torch.float64:
        few: Tensor = torch.linalg.vector_norm(values_BK, dim=-1).double().square_()
        return few
    whole = count - count % BLOCK
    blocks = torch.unflatten(values_BK.narrow(-1, 0, whole), -1, (-1, BLOCK))
    squares: Tensor = torch.linalg.vector_norm(blocks, dim=-1).double().square_().sum(-1)
    if whole < count:
        squares += torch.linalg.vector_norm(values_BK.narrow(-1, whole, count - whole), dim=-1).double().square_()
    return squares


def product_of_squares(
    left: Tensor, right: Tensor, widths: tuple[int, int], dtype: torch.dtype, floor: float
) -> Tensor:
    """Return the product of squared norms, infinite where what underflowed in one factor may count beside the other.

    Infinite squares are computed again in float64.

    Args:
        left, right: squared norms of the factors, in float64.
        widths: how many values each of them has.
        dtype: that of the values.
        floor: a squared norm that counts as much as any smaller one.
    """
    product = left * right
    lost = (left * widths[1]).add_(right, alpha=widths[0])
    return product.masked_fill_(lost.mul_(TINY[dtype] / SHARE) > product.clamp(min=floor), torch.inf)
