"""The loops over a chunk, compiled. Importing this module needs numba, and compiles them the first time.

The operations of `hushgrad.noise.backends.ArrayBackend` in the same order and rounding: nothing is reassociated and no
multiplication is fused with an addition. None of these functions ever runs in Python.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hushgrad.noise import aes
from hushgrad.noise.backends import Floats, Places, Words
from hushgrad.noise.strips import PICKS

BLOCK = 512  # values at a time: their bits and pairs stay in the first cache
_LAST_PICK = PICKS - 1

Loop = Callable[..., int]
"""Writes values, or turns sums into (sum + std · z) / divisor in place; notes the places of what the remainder stands
for and returns their number."""


def _block(
    words: Words,
    values: Floats,
    is_sum: bool,
    std: Any,
    divisor: Any,
    table: NDArray[Any],
    pairs: NDArray[Any],
    positions: Floats,
) -> None:
    halves = pairs.view(values.dtype)  # middle, slope, middle, ...
    for i in range(len(values)):
        pairs[i] = table[words[i] & _LAST_PICK]
    if is_sum:
        for i in range(len(values)):
            positions[i] = words[i]  # rounds to the dtype of the values; in a product it would be float64
            values[i] = ((positions[i] * halves[2 * i + 1] + halves[2 * i]) * std + values[i]) / divisor
    else:
        for i in range(len(values)):
            positions[i] = words[i]
            values[i] = positions[i] * halves[2 * i + 1] + halves[2 * i]


def _missing(words: Words, count: int, first_of_remainder: int, begin: int, places: Places, found: int) -> int:
    any_missing = 0
    for i in range(count):
        any_missing += (words[i] & _LAST_PICK) >= first_of_remainder
    if any_missing:  # in one block of seven
        for i in range(count):
            if (words[i] & _LAST_PICK) >= first_of_remainder:
                places[found] = begin + i
                found += 1
    return found


_block_of = numba.njit(nogil=True)(_block)
_missing_in = numba.njit(nogil=True)(_missing)


def _of_words(
    words: Words,
    values: Floats,
    is_sum: bool,
    std: Any,
    divisor: Any,
    table: NDArray[Any],
    first_of_remainder: int,
    places: Places,
) -> int:
    """`Loop` over words that are given."""
    pairs, positions = np.empty(BLOCK, table.dtype), np.empty(BLOCK, values.dtype)
    found = 0
    for begin in range(0, len(values), BLOCK):
        block, part = words[begin : begin + BLOCK], values[begin : begin + BLOCK]
        _block_of(block, part, is_sum, std, divisor, table, pairs, positions)
        found = _missing_in(block, len(part), first_of_remainder, begin, places, found)
    return found


def _of_stream(
    key: NDArray[np.uint32],
    address: np.uint64,
    position: np.uint64,
    words: Words,
    values: Floats,
    is_sum: bool,
    std: Any,
    divisor: Any,
    table: NDArray[Any],
    first_of_remainder: int,
    places: Places,
) -> int:
    """`Loop` over the words of a stream from block `position` of an address on; `words` is memory for BLOCK of them."""
    pairs, positions = np.empty(BLOCK, table.dtype), np.empty(BLOCK, values.dtype)
    keys, bits = aes.schedule(key), words[:BLOCK].view(np.uint64)
    found = 0
    for begin in range(0, len(values), BLOCK):
        part = values[begin : begin + BLOCK]
        aes.fill(bits, keys, address, position + np.uint64(begin * words.itemsize // 16))
        _block_of(words, part, is_sum, std, divisor, table, pairs, positions)
        found = _missing_in(words, len(part), first_of_remainder, begin, places, found)
    return found


def _compiled(loop: Loop, *arguments: Any) -> Loop:
    signature = numba.intp(*arguments)
    try:
        result: Loop = numba.njit(signature, nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no folder in which the machine code could be kept
        result = numba.njit(signature, nogil=True)(loop)
    return result


def _loops(integer: Any, real: Any, pair: Any) -> tuple[Loop, Loop | None]:
    rest = (integer[::1], real[::1], numba.boolean, real, real, pair[::1], numba.intp, numba.intp[::1])
    of_stream = _compiled(_of_stream, numba.uint32[::1], numba.uint64, numba.uint64, *rest) if aes.LANES else None
    return _compiled(_of_words, *rest), of_stream


LOOPS: dict[np.dtype[Any], tuple[Loop, Loop | None]] = {
    np.dtype(np.int32): _loops(numba.int32, numba.float32, numba.uint64),
    np.dtype(np.int64): _loops(numba.int64, numba.float64, numba.complex128),
}
"""For words of each width the loop over words, and the one over a stream where the processor has AES instructions."""
