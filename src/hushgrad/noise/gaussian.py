"""Gaussian noise from a keyed stream: Box-Muller, in blocks that stay in the cache.

A pair of normals needs a radius and an angle, r·cos θ and r·sin θ with r = sqrt(-2 log u). A block of n values reads
n random words: the first half of them gives the radii, the second half the angles. The blocks' size is part of the
definition of the draw, so its values depend on the key, the address, the number of values and the dtype, and not on
the number of threads or the memory at hand.

Precision of the radius. A 31-bit word carries few significant bits at either end of its range, and float32 cannot
tell the largest ones from 1. Radii of words at the ends are therefore computed in float64 from 63 bits, the further 32
taken from a region of the address that values never reach. In float64 all words have 63 bits.

Guarantee: values beyond |z| = 8 occur with their true probability; the largest possible |z| is 9.4.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from hushgrad.arguments import non_negative_number, positive_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import Address, KeyStream

BLOCK_VALUES = 1 << 18

# Words below LOW or from HIGH on take 32 further bits: one in 2**19, so that few blocks pay for looking them up.
LOW = 1 << 11
HIGH = (1 << 31) - (1 << 11)
_REFINEMENT_OFFSET = 1 << 60
_REFINEMENT_STRIDE = 4 * BLOCK_VALUES  # bytes; a block refines at most BLOCK_VALUES / 2 words of 4 bytes

_WORDS = {torch.float32: torch.int32, torch.float64: torch.int64}


def standard_normal(
    shape: Sequence[int], *, dtype: torch.dtype, device: torch.device | str, stream: KeyStream, address: Address
) -> Tensor:
    """Return independent standard normal values.

    Args:
        shape: the shape of the result.
        dtype: `torch.float32` or `torch.float64`; noise in 16 bits would round the tail and the sum.
        device: where the result lies. Values are drawn on the CPU and copied, so they are the same on every device.
        stream: the source of bits. The global generators are neither read nor advanced.
        address: where in the stream the draw lies. One address serves one draw: the same address gives the same
            values again, and noise used twice cancels.

    Guarantee: the values depend on the key, the address, the number of values and the dtype only.
    """
    _require_wide(dtype, "dtype")
    values = torch.empty(torch.Size(shape), dtype=dtype, device="cpu")
    flat = values.view(-1)
    for start, block in _normal_blocks(flat.numel(), dtype, stream, address):
        flat[start : start + block.numel()].copy_(block)
    return values.to(device)


@torch.no_grad()
def noisy_update(total: Tensor, *, noise_std: float, divisor: float, stream: KeyStream, address: Address) -> Tensor:
    """Return `(total + noise_std · z) / divisor`, z standard normal: the sum, then noise, then the division.

    Args:
        total: the clipped sum, float32 or float64, any shape; it is not modified.
        noise_std: standard deviation of the noise on the sum, in units of the gradient (noise_multiplier times the
            sensitivity). 0 draws and adds nothing.
        divisor: a public constant, 1 for the sum itself. Never the number of examples that happened to be drawn.
        stream: the source of bits.
        address: where in the stream the noise lies; one address serves one call.

    Returns:
        A new contiguous tensor of the shape, dtype and device of `total`.

    Guarantee: the noise of the result has standard deviation noise_std / divisor.
    """
    _require_wide(total.dtype, "total")
    std = non_negative_number("noise_std", noise_std)
    denominator = positive_number("divisor", divisor)
    if std == 0:
        return (total / denominator).contiguous()
    if total.device.type != "cpu":
        noise = standard_normal(total.shape, dtype=total.dtype, device=total.device, stream=stream, address=address)
        return noise.mul_(std).add_(total).div_(denominator)
    update = torch.empty(total.shape, dtype=total.dtype, device="cpu")
    flat_update, flat_total = update.view(-1), total.detach().reshape(-1)
    for start, block in _normal_blocks(flat_update.numel(), total.dtype, stream, address):
        span = slice(start, start + block.numel())
        torch.add(flat_total[span], block, alpha=std, out=flat_update[span]).div_(denominator)
    return update


def _require_wide(dtype: torch.dtype, name: str) -> None:
    if dtype not in _WORDS:
        raise InvalidArgumentError(
            f"{name} must be float32 or float64, got {dtype}; sum and add noise in float32, then cast the result"
        )


def _normal_blocks(count: int, dtype: torch.dtype, stream: KeyStream, address: Address) -> Iterator[tuple[int, Tensor]]:
    """Yield (start, values) until `count` values are drawn; the values' memory is reused for the next block."""
    pairs_limit = (min(count, BLOCK_VALUES) + 1) // 2
    words = torch.empty(2 * pairs_limit, dtype=_WORDS[dtype], device="cpu")
    scratch = torch.empty(3 * pairs_limit, dtype=dtype, device="cpu")
    bytes_per_value = words.element_size()
    for start in range(0, count, BLOCK_VALUES):
        size = min(BLOCK_VALUES, count - start)
        pairs = (size + 1) // 2
        stream.fill(words[: 2 * pairs].numpy(), address, offset=start * bytes_per_value)
        radius, angle, values = scratch[:pairs], words[pairs : 2 * pairs], scratch[pairs : 3 * pairs]
        if dtype == torch.float32:
            _radii_from_31_bits(words[:pairs], radius, stream, address, start // BLOCK_VALUES)
        else:
            _radii_from_63_bits(words[:pairs], radius)
        _rotate(radius, angle, values)
        yield start, values[:size]


def _radii_from_63_bits(words: Tensor, radius: Tensor) -> None:
    """Write sqrt(-2 log u) for u = (word mod 2**63 + 1/2) / 2**63. Overwrites `words` ([pairs] of int64)."""
    radius.copy_(words.bitwise_and_((1 << 63) - 1)).mul_(2.0**-63).add_(2.0**-64)
    radius.log_().mul_(-2.0).sqrt_()


def _radii_from_31_bits(words: Tensor, radius: Tensor, stream: KeyStream, address: Address, block: int) -> None:
    """Write sqrt(-2 log u) for u = (word mod 2**31 + 1/2) / 2**31, with 32 further bits at both ends of the range."""
    radius.copy_(words.bitwise_and_((1 << 31) - 1)).mul_(2.0**-31).add_(2.0**-32)
    radius.log_().mul_(-2.0).sqrt_()
    smallest, largest = words.aminmax()
    if int(smallest) >= LOW and int(largest) < HIGH:
        return
    ends = ((words < LOW) | (words >= HIGH)).nonzero().view(-1)
    further = np.empty(ends.numel(), dtype=np.uint32)
    stream.fill(further, address, offset=_REFINEMENT_OFFSET + block * _REFINEMENT_STRIDE)
    radius[ends] = torch.from_numpy(refined_radii(words[ends].numpy(), further)).to(radius.dtype)


def refined_radii(words: np.ndarray, further: np.ndarray) -> np.ndarray:
    """Return sqrt(-2 log u) in float64 for u = (word · 2**32 + further + 1/2) / 2**63.

    Args:
        words: [n] integers in [0, 2**31).
        further: [n] integers in [0, 2**32).
    """
    # Counted from the nearer end of the range, so that neither u nor 1 - u loses its significant bits.
    position = words.astype(np.uint64) << np.uint64(32) | further.astype(np.uint64)
    from_zero = (position.astype(np.float64) + 0.5) * 2.0**-63
    from_one = ((np.uint64((1 << 63) - 1) - position).astype(np.float64) + 0.5) * 2.0**-63
    logarithm = np.where(from_zero < 0.5, np.log(from_zero), np.log1p(-np.minimum(from_one, 0.5)))
    return np.sqrt(-2.0 * logarithm)


def _rotate(radius: Tensor, words: Tensor, values: Tensor) -> None:
    """Write (radius · cos θ, radius · sin θ) into the halves of `values`, θ = π · word / 2**(bits - 1)."""
    pairs = radius.numel()
    cosine, sine = values[:pairs], values[pairs:]
    sine.copy_(words).mul_(math.pi * 2.0 ** (1 - 8 * words.element_size()))
    torch.cos(sine, out=cosine).mul_(radius)
    sine.sin_().mul_(radius)
