"""Per-example weight gradients with their squared norms taken where they are formed, in one Triton kernel.

A program forms one tile of `G_i = L_iᵀ R_i` in registers and writes the sum of its squares, and the tile itself where
it is to be kept. So a norm costs no second pass over the gradients, and where they are not kept they are never written.

Guarantee: what one example's operands hold, finite or not, changes no other example's norm.
Guarantee: partial sums are added in a fixed order, so that the same operands give the same norms again.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hushgrad.kernels.launch import must_widen, on_device_of, power_of_two


def norms(left: Tensor, right: Tensor, *, keep: bool, block: int = 64) -> tuple[Tensor, Tensor | None]:
    """Return ‖Σ_t l_t ⊗ r_t‖² for each example, `[B]` in float64, and the gradients `[B, p, d]` in float32 if `keep`.

    Args:
        left: `[B, T, p]`, float32, bfloat16 or float16; products are summed in float32.
        right: `[B, T, d]`, likewise and of the same dtype.
        keep: whether gradients are written.
        block: rows and columns of a tile, a power of two from 16 on.
    """
    batch, positions, p = left.shape
    d = right.shape[2]
    rows, columns = triton.cdiv(p, block), triton.cdiv(d, block)
    partial = torch.empty(batch, rows * columns, dtype=torch.float32, device=left.device)
    gradients = torch.empty(batch, p, d, dtype=torch.float32, device=left.device) if keep else None
    with on_device_of(left):
        if partial.numel():
            _instantiate[(partial.numel(),)](
                left,
                right,
                partial,
                partial if gradients is None else gradients,
                positions,
                p,
                d,
                *left.stride(),
                *right.stride(),
                rows * columns,
                columns,
                KEEP=keep,
                BLOCK=block,
                DEPTH=power_of_two(positions, 16, 32),
                WIDEN=must_widen(left),
                num_warps=8,
                enable_fp_fusion=True,
            )
        return partial.sum(1, dtype=torch.float64), gradients


@triton.jit
def _instantiate(
    left,
    right,
    partial,
    gradients,
    positions,
    p,
    d,
    left_b,
    left_t,
    left_p,
    right_b,
    right_t,
    right_d,
    tiles,
    columns,
    KEEP: tl.constexpr,
    BLOCK: tl.constexpr,
    DEPTH: tl.constexpr,
    WIDEN: tl.constexpr,
):
    program = tl.program_id(0).to(tl.int64)
    example, tile = program // tiles, program % tiles
    row = tile // columns * BLOCK + tl.arange(0, BLOCK)
    column = tile % columns * BLOCK + tl.arange(0, BLOCK)
    is_row, is_column = (row < p)[:, None], (column < d)[None, :]
    left += example * left_b
    right += example * right_b
    gradient = tl.zeros([BLOCK, BLOCK], tl.float32)
    for start in range(0, positions, DEPTH):
        t = (start + tl.arange(0, DEPTH)).to(tl.int64)
        one = tl.load(
            left + row[:, None] * left_p + t[None, :] * left_t, mask=is_row & (t < positions)[None, :], other=0.0
        )
        other = tl.load(
            right + t[:, None] * right_t + column[None, :] * right_d,
            mask=(t < positions)[:, None] & is_column,
            other=0.0,
        )
        if WIDEN:
            one, other = one.to(tl.float32), other.to(tl.float32)
        gradient = tl.dot(one, other, gradient, input_precision="ieee")
    # Beyond the edges zeros met what may be infinite.
    is_inside = is_row & is_column
    gradient = tl.where(is_inside, gradient, 0.0)
    tl.store(partial + program, tl.sum(tl.sum(gradient * gradient, axis=1), axis=0))
    if KEEP:
        place = (example * p + row[:, None]) * d + column[None, :]
        tl.store(gradients + place, gradient, mask=is_inside)
