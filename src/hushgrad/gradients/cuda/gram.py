"""Squared norms from Gram matrices that are never written, in one Triton kernel.

‖Σ_t l_t ⊗ r_t‖² = ⟨L Lᵀ, R Rᵀ⟩ = Σ_st (l_s·l_t)(r_s·r_t). A program takes one example and one pair of blocks of
positions: it forms the block of L Lᵀ and that of R Rᵀ in registers, multiplies them entry by entry and writes one
number. Pairs below the diagonal are not computed; those above it count twice.

Guarantee: what one example's operands hold, finite or not, changes no other example's norm.
Guarantee: partial sums are added in a fixed order, so that the same operands give the same norms again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hushgrad.kernels.launch import must_widen, on_device_of, power_of_two


def norms(left: Tensor, right: Tensor, *, block: int = 64) -> Tensor:
    """Return ⟨L Lᵀ, R Rᵀ⟩, `[B]`: pairs of blocks in float32, summed in float64.

    Args:
        left: `[B, T, p]`, float32, bfloat16 or float16; products are summed in float32.
        right: `[B, T, d]`, likewise.
        block: positions of a block, a power of two from 16 on.
    """
    batch, positions = left.shape[:2]
    blocks = triton.cdiv(positions, block)
    pairs = blocks * (blocks + 1) // 2
    partial_norms = torch.empty(batch, pairs, dtype=torch.float32, device=left.device)
    with on_device_of(left):
        if batch * pairs:
            _gram[(batch * pairs,)](
                left,
                right,
                partial_norms,
                positions,
                left.shape[2],
                right.shape[2],
                *left.stride(),
                *right.stride(),
                pairs,
                BLOCK=block,
                LEFT=power_of_two(left.shape[2], 16, 32),
                RIGHT=power_of_two(right.shape[2], 16, 32),
                WIDEN=must_widen(left) or must_widen(right),
                num_warps=8,
                enable_fp_fusion=True,
            )
        return partial_norms.sum(1, dtype=torch.float64)


@triton.jit
def _gram(
    left,
    right,
    partial_norms,
    positions,
    p,
    d,
    left_b,
    left_t,
    left_p,
    right_b,
    right_t,
    right_d,
    pairs,
    BLOCK: tl.constexpr,
    LEFT: tl.constexpr,
    RIGHT: tl.constexpr,
    WIDEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    example, pair = program // pairs, program % pairs
    # Pairs are counted (0, 0), (0, 1), (1, 1), (0, 2), ...: pair = column · (column + 1) / 2 + row.
    column = ((tl.sqrt((8 * pair + 1).to(tl.float64)) - 1) / 2).to(tl.int64)
    row = pair - column * (column + 1) // 2
    s = row * BLOCK + tl.arange(0, BLOCK)
    t = column * BLOCK + tl.arange(0, BLOCK)
    products = _products(left + example * left_b, s, t, positions, p, left_t, left_p, BLOCK, LEFT, WIDEN)
    others = _products(right + example * right_b, s, t, positions, d, right_t, right_d, BLOCK, RIGHT, WIDEN)
    weight = tl.where(row == column, 1.0, 2.0)
    tl.store(partial_norms + program, weight * tl.sum(tl.sum(products * others, axis=1), axis=0))


@triton.jit
def _products(
    matrix, s, t, positions, width, stride_t, stride_w, BLOCK: tl.constexpr, WIDTH: tl.constexpr, WIDEN: tl.constexpr
):
    """Return the block (s, t) of M Mᵀ, in float32."""
    products = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, width, WIDTH):
        columns = (start + tl.arange(0, WIDTH)).to(tl.int64)
        is_row, is_column = (s < positions)[:, None], (columns < width)[None, :]
        one = tl.load(matrix + s[:, None] * stride_t + columns[None, :] * stride_w, mask=is_row & is_column, other=0.0)
        is_other = (columns < width)[:, None] & (t < positions)[None, :]
        other = tl.load(matrix + columns[:, None] * stride_w + t[None, :] * stride_t, mask=is_other, other=0.0)
        if WIDEN:
            one, other = one.to(tl.float32), other.to(tl.float32)
        products = tl.dot(one, other, products, input_precision="ieee")
    return products
