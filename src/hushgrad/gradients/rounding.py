"""Where squared norms lose their digits: to cancellation, and beside squares that are huge."""

from __future__ import annotations

import torch
from torch import Tensor

# Below this share of Σ_t ‖left_t‖²‖right_t‖², a norm from the Gram matrices has lost too many digits to cancellation.
CANCELLATION = 0.02

# Squares beside which squares that underflow float32 (1e-38) would still count: 1e-38 · 2⁶⁴ is a norm of 4e-10.
HUGE = 2.0**64


def product_of_squares(left: Tensor, right: Tensor) -> Tensor:
    """Return the product of squared norms, infinite where one factor is so large that the other's digits may be lost.

    A square below 1e-38 is rounded to few digits or none in float32, and beside a huge one it would still count.
    Infinite squares are computed again in float64.
    """
    product = left * right
    return product if product.dtype == torch.float64 else product.masked_fill((left > HUGE) | (right > HUGE), torch.inf)
