"""Poisson subsampling in O(qN): a size from the binomial table, then a uniform subset of that size.

Truncation is done to the size: a uniformly random part of a uniform subset is a uniform subset of the part's size. So a
draw never holds what would be cut from it.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.arguments import probability, whole_number
from hushgrad.randomness import BLOCK_BYTES, Address, KeyStream
from hushgrad.sampling.binomial import BinomialTable
from hushgrad.sampling.scheme import Batches, SamplingScheme

# The items of a step's address: one draw each.
_SIZE, _SUBSET = 0, 1


@dataclass(frozen=True)
class PoissonSampling(SamplingScheme):
    """Every example takes part in every step independently with probability `rate`.

    The rate is a public constant. The size of a draw is secret and may be 0.

    Raises `InvalidArgumentError` unless 0 < rate <= 1.
    """

    rate: float

    def __post_init__(self) -> None:
        object.__setattr__(self, "rate", probability("rate", self.rate))

    def sampler(self, population: int, stream: KeyStream, batches: Batches | None = None) -> PoissonSampler:
        """Return what draws from range(population)."""
        return PoissonSampler(population, self.rate, stream)

    def event(self, noise_multiplier: float, index: int = 0) -> PoissonSampled:
        """Return what one step costs; all passes are alike."""
        return PoissonSampled(self.rate, noise_multiplier)

    def inclusion_probability(self, population: int) -> float:
        """Return the rate, that of every record."""
        return self.rate

    def expected_batch_size(self, population: int) -> float:
        """Return rate · population."""
        return self.rate * population

    @property
    def poisson_rate(self) -> float:
        """The rate, that of every record."""
        return self.rate


class PoissonSampler:
    """Draws subsets of range(count), every element independently with the exact probability `rate`.

    Given its size, a Poisson subset is uniform among the subsets of that size, so size and subset are drawn in turn.
    A draw is a function of the stream's key and the step.

    Guarantee: for uniform random bits, the total variation distance between a draw and exact Poisson sampling is below
    2**-64. (That of the size, see `BinomialTable`; given the size the subset is exactly uniform.)
    Guarantee: truncated, a draw is one of exact Poisson sampling, or a uniformly random `most` of it where it is
    larger, up to the same distance.
    """

    def __init__(self, count: int, rate: float, stream: KeyStream, *, most: int | None = None) -> None:
        """Draw with `rate`; a uniformly random `most` of a larger draw, if that is given."""
        self.count = whole_number("count", count, minimum=1)
        q = probability("rate", rate)
        self._most = self.count if most is None else min(self.count, whole_number("most", most, minimum=1))
        self._stream = stream
        self._table = BinomialTable(self.count, q) if q < 1 else None

    def draw(self, step: int) -> np.ndarray[Any, np.dtype[np.int64]]:
        """Return the indices that take part in `step`, ascending, int64; possibly none."""
        size = self.count
        if self._table is not None:
            size = self._table.size_at(int.from_bytes(self._stream.read(Address(step, _SIZE), 16), "little"))
        size = self._cut_size(size)
        if size == self.count:
            return np.arange(self.count)
        address = Address(step, _SUBSET)
        if 2 * size <= self.count:
            return uniform_subset(self.count, size, self._stream, address)
        left_out = uniform_subset(self.count, self.count - size, self._stream, address)
        return np.delete(np.arange(self.count), left_out)

    def _cut_size(self, size: int) -> int:
        return min(size, self._most)

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
        more, offset = _some_indices(count, size - chosen.size, stream, address, offset)
        chosen = _without_repetition(np.concatenate([chosen, more]))
    return chosen


def uniform_indices(count: int, size: int, stream: KeyStream, address: Address) -> np.ndarray[Any, np.dtype[np.int64]]:
    """Return `size` indices of range(count), each of them uniform and independent of the others."""
    drawn = np.empty(0, dtype=np.int64)
    offset = 0
    while drawn.size < size:
        more, offset = _some_indices(count, size - drawn.size, stream, address, offset)
        drawn = np.concatenate([drawn, more])
    return drawn


def _some_indices(
    count: int, most: int, stream: KeyStream, address: Address, offset: int
) -> tuple[np.ndarray[Any, np.dtype[np.int64]], int]:
    """Return at most `most` uniform, independent indices from the bits at `offset`, and the offset after them."""
    words = np.empty(most, dtype=np.uint64)
    stream.fill(words, address, offset)
    # Words of the last, incomplete run of `count` are rejected: the remainder of the others is uniform.
    kept = words[words <= np.uint64((1 << 64) - 1 - (1 << 64) % count)]
    return (kept % np.uint64(count)).astype(np.int64), offset + -(-words.nbytes // BLOCK_BYTES) * BLOCK_BYTES


def _without_repetition(indices: np.ndarray[Any, np.dtype[np.int64]]) -> np.ndarray[Any, np.dtype[np.int64]]:
    # np.unique hashes integers since NumPy 2.3, which takes a hundred times as long for a million of them.
    ordered = np.sort(indices)
    is_new = np.ones(ordered.size, dtype=np.bool_)
    np.not_equal(ordered[1:], ordered[:-1], out=is_new[1:])
    return ordered[is_new]
