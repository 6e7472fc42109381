"""`hushgrad.noise.cuda.definition` in one Triton kernel: cipher, strips, remainder, addition and division in one pass.

Each thread computes one block of ChaCha20, which makes 16 values. Words that pick the remainder are left for the end:
while a program has such words, each thread that has one takes its next candidate. A program is one warp with 512
values; one program in seven has such a word.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from hushgrad.kernels.launch import on_device_of
from hushgrad.noise.cuda import definition
from hushgrad.noise.cuda.chacha import CONSTANTS, DOUBLE_ROUNDS, CipherKey, signed
from hushgrad.noise.cuda.definition import DENSITY_AT_0, LANES, TILE
from hushgrad.randomness import Address

_LANES: tl.constexpr = tl.constexpr(LANES)
_TILE: tl.constexpr = tl.constexpr(TILE)
_DOUBLE_ROUNDS: tl.constexpr = tl.constexpr(DOUBLE_ROUNDS)
_C0: tl.constexpr = tl.constexpr(signed(CONSTANTS[0]))
_C1: tl.constexpr = tl.constexpr(signed(CONSTANTS[1]))
_C2: tl.constexpr = tl.constexpr(signed(CONSTANTS[2]))
_C3: tl.constexpr = tl.constexpr(signed(CONSTANTS[3]))
_DENSITY_AT_0: tl.constexpr = tl.constexpr(DENSITY_AT_0)


@torch.no_grad()
def noisy_update(
    total: Tensor,
    *,
    noise_std: float,
    divisor: float,
    key: CipherKey,
    address: Address,
    overwrite: bool = False,
    lanes: int = LANES,
) -> Tensor:
    """Return what `definition.noisy_update` returns; `lanes` is how many threads a program has and changes no value.

    Guarantee: values are those of the definition bit for bit, but in the tails beyond 3.75, where they may differ in
    the last place because logarithms do.
    """
    std, denominator, update = definition.prepared(total, noise_std, divisor, overwrite)
    count = total.numel()
    if not count:
        return update
    table = definition.tables(total.device)
    with on_device_of(total):
        _noisy_update[(-(-count // (lanes * TILE // LANES)),)](
            update,
            total.detach().contiguous(),
            count,
            std,
            denominator,
            *key.words,
            *definition.nonce_of(address),
            table.picks,
            table.edges,
            table.heights,
            table.boxes,
            table.gaps,
            table.count,
            THREADS=lanes,
            STEPS=table.count.bit_length(),
            num_warps=max(1, min(8, lanes // 32)),
            enable_fp_fusion=False,  # a product and a sum that are rounded once, not twice, are other values
        )
    return update


# Numbers that say nothing about a kernel's form must not lead to kernels of their own: a key word is such a number.
@triton.jit(
    do_not_specialize=["count", "k0", "k1", "k2", "k3", "k4", "k5", "k6", "k7", "n1", "n2"],
)
def _noisy_update(
    out,
    total,
    count,
    std,
    divisor,
    k0,
    k1,
    k2,
    k3,
    k4,
    k5,
    k6,
    k7,
    n1,
    n2,
    picks,
    edges,
    heights,
    boxes,
    gaps,
    strips,
    THREADS: tl.constexpr,
    STEPS: tl.constexpr,
):
    block = tl.program_id(0).to(tl.int64) * THREADS + tl.arange(0, THREADS)
    base = block // _LANES * _TILE + block % _LANES  # the place of the block's first value
    first = tl.zeros([THREADS], tl.uint32)
    w0, w1, w2, w3, w4, w5, w6, w7, w8, w9, w10, w11, w12, w13, w14, w15 = _chacha20(
        k0, k1, k2, k3, k4, k5, k6, k7, block.to(tl.uint32), first, n1, n2
    )
    # Bit j is set while word j of this thread's block waits for a value of the remainder.
    waiting = tl.zeros([THREADS], tl.int32)
    waiting |= _strip(w0, 0, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w1, 1, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w2, 2, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w3, 3, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w4, 4, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w5, 5, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w6, 6, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w7, 7, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w8, 8, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w9, 9, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w10, 10, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w11, 11, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w12, 12, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w13, 13, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w14, 14, base, out, total, count, std, divisor, picks, strips)
    waiting |= _strip(w15, 15, base, out, total, count, std, divisor, picks, strips)

    attempt = tl.zeros([THREADS], tl.int64)
    while tl.max(waiting) > 0:
        bit = waiting & -waiting
        place = base + _LANES * _number_of(bit)
        first = (16 * (attempt + 1) + (place >> 32)).to(tl.uint32)
        c0, c1, c2, c3, c4, c5, _0, _1, _2, _3, _4, _5, _6, _7, _8, _9 = _chacha20(
            k0, k1, k2, k3, k4, k5, k6, k7, place.to(tl.uint32), first, n1, n2
        )
        value, is_accepted = _candidate(c0, c1, c2, c3, c4, c5, edges, heights, boxes, gaps, strips, STEPS)
        is_accepted &= waiting != 0
        _write(value.to(tl.float32), place, is_accepted, out, total, std, divisor)
        waiting = tl.where(is_accepted, waiting ^ bit, waiting)
        attempt = tl.where(is_accepted, 0, attempt + 1)


@triton.jit
def _chacha20(k0, k1, k2, k3, k4, k5, k6, k7, counter, n0, n1, n2):
    """The sixteen words of one block per thread, uint32; key and n1, n2 are int32 and the same for all."""
    same = tl.zeros_like(counter)
    s4, s5, s6, s7 = same + _bits(k0), same + _bits(k1), same + _bits(k2), same + _bits(k3)
    s8, s9, s10, s11 = same + _bits(k4), same + _bits(k5), same + _bits(k6), same + _bits(k7)
    s14, s15 = same + _bits(n1), same + _bits(n2)
    s0 = tl.full(counter.shape, _C0, tl.int32).to(tl.uint32, bitcast=True)
    s1 = tl.full(counter.shape, _C1, tl.int32).to(tl.uint32, bitcast=True)
    s2 = tl.full(counter.shape, _C2, tl.int32).to(tl.uint32, bitcast=True)
    s3 = tl.full(counter.shape, _C3, tl.int32).to(tl.uint32, bitcast=True)
    x0, x1, x2, x3, x4, x5, x6, x7 = s0, s1, s2, s3, s4, s5, s6, s7
    x8, x9, x10, x11, x12, x13, x14, x15 = s8, s9, s10, s11, counter, n0, s14, s15
    for _ in range(_DOUBLE_ROUNDS):
        x0, x4, x8, x12 = _quarter_round(x0, x4, x8, x12)
        x1, x5, x9, x13 = _quarter_round(x1, x5, x9, x13)
        x2, x6, x10, x14 = _quarter_round(x2, x6, x10, x14)
        x3, x7, x11, x15 = _quarter_round(x3, x7, x11, x15)
        x0, x5, x10, x15 = _quarter_round(x0, x5, x10, x15)
        x1, x6, x11, x12 = _quarter_round(x1, x6, x11, x12)
        x2, x7, x8, x13 = _quarter_round(x2, x7, x8, x13)
        x3, x4, x9, x14 = _quarter_round(x3, x4, x9, x14)
    x0, x1, x2, x3, x4, x5, x6, x7 = x0 + s0, x1 + s1, x2 + s2, x3 + s3, x4 + s4, x5 + s5, x6 + s6, x7 + s7
    x8, x9, x10, x11, x12, x13 = x8 + s8, x9 + s9, x10 + s10, x11 + s11, x12 + counter, x13 + n0
    return x0, x1, x2, x3, x4, x5, x6, x7, x8, x9, x10, x11, x12, x13, x14 + s14, x15 + s15


@triton.jit
def _quarter_round(a, b, c, d):
    a += b
    d ^= a
    d = (d << 16) | (d >> 16)
    c += d
    b ^= c
    b = (b << 12) | (b >> 20)
    a += b
    d ^= a
    d = (d << 8) | (d >> 24)
    c += d
    b ^= c
    b = (b << 7) | (b >> 25)
    return a, b, c, d


@triton.jit
def _bits(number):
    return number.to(tl.uint32, bitcast=True)


@triton.jit
def _strip(word, j: tl.constexpr, base, out, total, count, std, divisor, picks, strips):
    """Write the values of word j of each block; return bit j where it picks the remainder instead."""
    place = base + _LANES * j
    pick = (word & 0xFFFF).to(tl.int32)
    middle, slope = tl.load(picks + 2 * pick), tl.load(picks + 2 * pick + 1)
    value = middle + slope * word.to(tl.int32, bitcast=True).to(tl.float32)
    is_strip = pick < 2 * strips
    _write(value, place, is_strip & (place < count), out, total, std, divisor)
    return ((place < count) & (pick >= 2 * strips)).to(tl.int32) << j


@triton.jit
def _write(value, place, where, out, total, std, divisor):
    """Write (total + std · value) / divisor; `out` and `total` may be the same memory, so each place is read once."""
    noised = tl.load(total + place, mask=where, other=0.0) + value * std
    tl.store(out + place, tl.math.div_rn(noised, tl.zeros_like(noised) + divisor), mask=where)


@triton.jit
def _number_of(bit):
    """Return j of 2**j, for j < 16."""
    low = ((bit & 0xAAAA) != 0).to(tl.int64) + 2 * ((bit & 0xCCCC) != 0).to(tl.int64)
    return low + 4 * ((bit & 0xF0F0) != 0).to(tl.int64) + 8 * ((bit & 0xFF00) != 0).to(tl.int64)


@triton.jit
def _candidate(c0, c1, c2, c3, c4, c5, edges, heights, boxes, gaps, strips, STEPS: tl.constexpr):
    """Return candidates of the remainder in float64, and which are accepted, as `definition._candidates` does."""
    share = c0.to(tl.float64) * 2.0**-32 + (c1 >> 1).to(tl.float64) * 2.0**-63
    across = c2.to(tl.float64) * 2.0**-32 + (c3.to(tl.float64) + 0.5) * 2.0**-64
    up = c4.to(tl.float64) * 2.0**-32 + (c5.to(tl.float64) + 0.5) * 2.0**-64
    target = share * tl.load(boxes + strips)
    box = tl.zeros_like(c0).to(tl.int32)  # how many boxes end at or before the target, found bit by bit
    for step in tl.static_range(STEPS):
        probe = box + (1 << (STEPS - 1 - step))
        is_inside = probe <= strips
        end = tl.load(boxes + probe - 1, mask=is_inside, other=0.0)
        box = tl.where(is_inside & (end <= target), probe, box)
    strip = tl.minimum(box, strips - 1)
    left = tl.load(edges + strip)
    x = left + across * (tl.load(edges + strip + 1) - left)
    curve = tl.exp(x * x * -0.5) * _DENSITY_AT_0
    is_accepted = up * tl.load(gaps + strip) < curve - tl.load(heights + strip)
    edge = tl.load(edges + strips)
    beyond = tl.sqrt(edge * edge - 2.0 * tl.log(across))
    is_tail = box == strips
    x = tl.where(is_tail, beyond, x)
    is_accepted = tl.where(is_tail, up * beyond < edge, is_accepted)
    return tl.where((c1 & 1) == 1, -x, x), is_accepted
