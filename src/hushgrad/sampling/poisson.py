"""Poisson subsampling in O(qN): a size from the binomial table, then a uniform subset of that size."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np

from hushgrad.arguments import whole_number
from hushgrad.randomness import BLOCK_BYTES, Address, KeyStream
from hushgrad.sampling.binomial import BinomialTable
from hushgrad.sampling.specs import PoissonSampling

# The items of a step's address: one draw each.
_SIZE, _SUBSET = 0, 1


class PoissonSampler:
    """Draws subsets of range(count), every element independently with the exact probability `sampling.rate`.

    Given its size, a Poisson subset is uniform among the subsets of that size, so size and subset are drawn in turn.
    A draw is a function of the stream's key and the step.

    Guarantee: for uniform random bits, the total variation distance between a draw and exact Poisson sampling is below
    2**-64. (That of the size, see `BinomialTable`; given the size the subset is exactly uniform.)
    """

    def __init__(self, count: int, sampling: PoissonSampling, stream: KeyStream) -> None:
        self.count = whole_number("count", count, minimum=1)
        self.sampling = sampling
        self._stream = stream
        self._table = BinomialTable(self.count, sampling.rate) if sampling.rate < 1 else None

    def draw(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the indices that take part in `step`, ascending, int64; possibly none."""
        if self._table is None:
            return np.arange(self.count)
        size = self._table.size_at(int.from_bytes(self._stream.read(Address(step, _SIZE), 16), "little"))
        address = Address(step, _SUBSET)
        if 2 * size <= self.count:
            return uniform_subset(self.count, size, self._stream, address)
        left_out = uniform_subset(self.count, self.count - size, self._stream, address)
        return np.delete(np.arange(self.count), left_out)

    def one_pass(self, steps: int, first_step: int) -> Iterator[tuple[int, ...]]:
        """Yield the draws of `steps` consecutive steps."""
        for step in range(first_step, first_step + steps):
            yield tuple(self.draw(step).tolist())


def uniform_subset(count: int, size: int, stream: KeyStream, address: Address) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `size` different indices of range(count), ascending; every subset of that size is equally likely.

    Uniform indices are added until the set is full, each time as many as are missing, and repeated ones change
    nothing. The procedure treats all indices alike, so all sets of the final size are equally likely. Fast while
    `size` is at most half of `count`.
    """
    chosen = np.empty(0, dtype=np.int64)
    offset = 0
    while chosen.size < size:
        words = np.empty(size - chosen.size, dtype=np.uint64)
        stream.fill(words, address, offset)
        offset += -(-words.nbytes // BLOCK_BYTES) * BLOCK_BYTES
        # Words of the last, incomplete run of `count` are rejected: the remainder of the others is uniform.
        words = words[words <= np.uint64((1 << 64) - 1 - (1 << 64) % count)]
        chosen = _without_repetition(np.concatenate([chosen, (words % np.uint64(count)).astype(np.int64)]))
    return chosen


def _without_repetition(indices: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    # np.unique hashes integers since NumPy 2.3, which takes a hundred times as long for a million of them.
    ordered = np.sort(indices)
    is_new = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    return ordered[is_new]
