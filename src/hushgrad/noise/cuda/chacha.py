"""ChaCha20 in array operations of torch: the bits of noise that is drawn on a GPU.

A block is a function of a 256-bit key, a 32-bit counter and a 96-bit nonce, as in RFC 8439, and needs nothing but
additions, XORs and rotations of 32-bit words. All 20 rounds are kept. By what is known today fewer would do (the best
attacks reach 7), but noise is a small part of a step, and 20 rounds were reviewed, standardised and have known answers.

This file is the definition; `hushgrad.noise.cuda.kernel` computes the same words in a kernel.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import NoReturn

import numpy as np
import torch
from torch import Tensor

from hushgrad.randomness import KEY_BYTES, Address, KeyStream

DOUBLE_ROUNDS = 10
BLOCK_WORDS = 16

# "expand 32-byte k", as four little-endian words.
CONSTANTS = (0x61707865, 0x3320646E, 0x79622D32, 0x6B206574)

Nonce = tuple[int | Tensor, int, int]

_PURPOSE = "noise by ChaCha20 on a device"


@dataclass(frozen=True, slots=True, eq=False)
class CipherKey:
    """A secret key of 256 bits, as eight signed 32-bit numbers; `repr` does not show them, and it is never saved."""

    words: tuple[int, ...] = field(repr=False)

    @classmethod
    def of(cls, stream: KeyStream) -> CipherKey:
        """Return the key that belongs to a stream (some 30 µs).

        It is read from a fork of the stream that serves this purpose alone, so it says nothing about any other bit
        that is drawn from the stream, and none of them about it. Raises `ProtocolError` in a forked process.
        """
        bits = stream.fork(_PURPOSE).read(Address(0), KEY_BYTES)
        return cls(tuple(int(word) for word in np.frombuffer(bits, "<i4")))

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise TypeError("a CipherKey cannot be pickled or copied: noise drawn twice cancels exactly")


def signed(word: int) -> int:
    """Return the signed 32-bit number with the bits of `word`, which is in [0, 2**32)."""
    return word - (1 << 32) if word >= 1 << 31 else word


def chacha20(key: CipherKey, counter: Tensor, nonce: Nonce) -> Tensor:
    """Return the blocks of many counters, `[16, n]` words in int32.

    Args:
        key: all words, of key, nonce and result, are signed 32-bit numbers.
        counter: `[n]`, int32, the counters of the blocks.
        nonce: three words; the first may be `[n]`, int32, one for each block.

    Guarantee: blocks are those of RFC 8439 (ChaCha20 with a 32-bit counter and a 96-bit nonce).
    """
    start = torch.empty(BLOCK_WORDS, len(counter), dtype=torch.int32, device=counter.device)
    for place, word in enumerate((*(signed(word) for word in CONSTANTS), *key.words, counter, *nonce)):
        start[place] = word
    # Four quarter rounds at a time: row i of the 4 × 4 state is state[i], and diagonals are columns of turned rows.
    a, b, c, d = start.view(4, 4, -1).clone().unbind()
    for _ in range(DOUBLE_ROUNDS):
        _quarter_rounds(a, b, c, d)
        b, c, d = b.roll(-1, 0), c.roll(-2, 0), d.roll(-3, 0)
        _quarter_rounds(a, b, c, d)
        b, c, d = b.roll(1, 0), c.roll(2, 0), d.roll(3, 0)
    return torch.cat([a, b, c, d]).add_(start)


def _quarter_rounds(a: Tensor, b: Tensor, c: Tensor, d: Tensor) -> None:
    a.add_(b)
    _turn_left(d.bitwise_xor_(a), 16)
    c.add_(d)
    _turn_left(b.bitwise_xor_(c), 12)
    a.add_(b)
    _turn_left(d.bitwise_xor_(a), 8)
    c.add_(d)
    _turn_left(b.bitwise_xor_(c), 7)


def _turn_left(words: Tensor, bits: int) -> None:
    """Rotate in place. int32 shifts copies of the sign in from the left, which the mask takes away."""
    low = words.bitwise_right_shift(32 - bits).bitwise_and_((1 << bits) - 1)
    words.bitwise_left_shift_(bits).bitwise_or_(low)
