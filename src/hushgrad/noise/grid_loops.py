"""The loop over a chunk for noise on a grid, compiled. Importing this module needs numba, and compiles it once.

The operations of `hushgrad.noise.grid_backends.ArrayBackend` in the same order and rounding: nothing is reassociated
and no multiplication is fused with an addition. None of these functions ever runs in Python.
"""

from __future__ import annotations

from typing import Any

import numba
import numpy as np
from numpy.typing import NDArray

from hushgrad.noise import aes
from hushgrad.noise.strips import PICKS

BLOCK = 512  # values at a time: their bits and pairs stay in the first cache
_LAST_PICK = PICKS - 1

Array = NDArray[Any]


def _block(
    words: Array,
    values: Array,
    ratio: float,
    certain: float,
    spacing: float,
    cells_in_one: float,
    divisor: float,
    table: Array,
    first_of_remainder: int,
    pairs: Array,
    is_left: Array,
    begin: int,
    places: Array,
    left_words: Array,
    left_sums: Array,
    found: int,
) -> int:
    halves = pairs.view(np.float64)  # middle, slope, middle, ...
    for i in range(len(values)):
        pairs[i] = table[words[i] & _LAST_PICK]
    any_left = 0
    for i in range(len(values)):
        noise = (np.float64(words[i]) * halves[2 * i + 1] + halves[2 * i]) * ratio
        cell = np.rint(noise)
        left = (abs(noise - cell) > certain) | ((words[i] & _LAST_PICK) >= first_of_remainder)
        is_left[i] = left
        any_left += left
        values[i] = np.rint(values[i] * cells_in_one) + (0.0 if left else cell) + 0.0  # no -0
    if any_left:  # in one block of seven
        for i in range(len(values)):
            if is_left[i]:
                places[found], left_words[found], left_sums[found] = begin + i, words[i], values[i]
                found += 1
    for i in range(len(values)):
        values[i] = values[i] * spacing / divisor
    return found


_block_of = numba.njit(nogil=True)(_block)


def _of_words(
    words: Array,
    values: Array,
    ratio: float,
    certain: float,
    spacing: float,
    cells_in_one: float,
    divisor: float,
    table: Array,
    first_of_remainder: int,
    places: Array,
    left_words: Array,
    left_sums: Array,
) -> int:
    """Over words that are given; return how many values are left out, whose places, words and sums are written."""
    pairs, is_left = np.empty(BLOCK, table.dtype), np.empty(BLOCK, np.int64)
    found = 0
    for begin in range(0, len(values), BLOCK):
        block, part = words[begin : begin + BLOCK], values[begin : begin + BLOCK]
        found = _block_of(
            block,
            part,
            ratio,
            certain,
            spacing,
            cells_in_one,
            divisor,
            table,
            first_of_remainder,
            pairs,
            is_left,
            begin,
            places,
            left_words,
            left_sums,
            found,
        )
    return found


def _of_stream(
    key: Array,
    address: np.uint64,
    position: np.uint64,
    words: Array,
    values: Array,
    ratio: float,
    certain: float,
    spacing: float,
    cells_in_one: float,
    divisor: float,
    table: Array,
    first_of_remainder: int,
    places: Array,
    left_words: Array,
    left_sums: Array,
) -> int:
    """Over the words of a stream from block `position` of an address on; `words` is memory for BLOCK of them."""
    pairs, is_left = np.empty(BLOCK, table.dtype), np.empty(BLOCK, np.int64)
    keys, bits = aes.schedule(key), words[:BLOCK].view(np.uint64)
    found = 0
    for begin in range(0, len(values), BLOCK):
        part = values[begin : begin + BLOCK]
        aes.fill(bits, keys, address, position + np.uint64(begin // 2))
        found = _block_of(
            words,
            part,
            ratio,
            certain,
            spacing,
            cells_in_one,
            divisor,
            table,
            first_of_remainder,
            pairs,
            is_left,
            begin,
            places,
            left_words,
            left_sums,
            found,
        )
    return found


def _compiled(loop: Any, *arguments: Any) -> Any:
    signature = numba.intp(*arguments)
    try:
        return numba.njit(signature, nogil=True, cache=True)(loop)
    except RuntimeError:  # there is no folder in which the machine code could be kept
        return numba.njit(signature, nogil=True)(loop)


_REAL = numba.float64
_REST = (
    numba.int64[::1],
    _REAL[::1],
    *[_REAL] * 5,
    numba.complex128[::1],
    numba.intp,
    numba.intp[::1],
    numba.int64[::1],
    _REAL[::1],
)

OF_WORDS: Any = _compiled(_of_words, *_REST)
OF_STREAM: Any = _compiled(_of_stream, numba.uint32[::1], numba.uint64, numba.uint64, *_REST) if aes.LANES else None
"""None where the processor has no AES instructions."""
