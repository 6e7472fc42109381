"""What a thread computes on a chunk of words: normal values, or sums with noise.

`ArrayBackend` is the definition: NumPy and torch, one array operation after another. `hushgrad.noise.compiled` has the
same as one loop.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hushgrad.noise.strips import PICKS, pick_table, strips
from hushgrad.randomness import Address

Floats = NDArray[np.floating[Any]]
Places = NDArray[np.intp]
Words = NDArray[np.signedinteger[Any]]


class WordSource(Protocol):
    """What a `KeyStream` does for a draw; a test may put words of its own in its place."""

    def fill(self, buffer: Any, address: Address, offset: int = 0) -> None:
        """Overwrite `buffer` with the bits at `address`, from byte `offset` on."""


@dataclass(frozen=True, slots=True, eq=False)
class Bits:
    """Where the words of a chunk come from: the draw's stream and address, and the place of the first one."""

    stream: WordSource
    address: Address
    start: int

    def fill(self, words: Words) -> None:
        """Overwrite `words` with the stream's."""
        self.stream.fill(words, self.address, offset=self.start * words.itemsize)


class Backend(Protocol):
    """Computes a chunk of at most `size` values, with the scratch memory of one thread.

    Both methods return the places of the values that the remainder stands for, in rising order, in memory that the
    next call uses again. One more thread is worth its start for `worth_a_thread` values.
    """

    size: int
    worth_a_thread: int

    def normal(self, bits: Bits, values: Floats) -> Places:
        """Write standard normal values, 0 for those that the remainder stands for."""

    def noised(self, bits: Bits, total: Floats | None, update: Floats, std: float, divisor: float) -> Places:
        """Write (total + std · z) / divisor into `update`, with z = 0 where the remainder stands for a value.

        Without a total, `update` holds it.
        """


class ArrayBackend:
    """The definition: array operations, each over the whole chunk."""

    # Scratch memory (17 bytes a value) leaves the fast caches, which costs less than more frequent changes between
    # Python and the array operations: threads wait for one another there.
    size = 1 << 17
    worth_a_thread = 1 << 15

    def __init__(self, word: np.dtype[Any]) -> None:
        size = self.size
        table = pick_table(8 * word.itemsize)
        real = table.dtype["middle"]
        self._words: Words = np.empty(size, word)
        self._first_of_remainder = 2 * strips().count
        self._positions, self._is_missing = np.empty(size, real), np.empty(size, np.bool_)
        # Middle and slope are fetched as one item of twice the width; torch looks such up faster than NumPy does.
        pair = np.dtype(np.float64 if real == np.float32 else np.complex128)
        self._pairs = np.empty(size, table.dtype)
        self._table, self._found = torch.from_numpy(table.view(pair)), torch.from_numpy(self._pairs.view(pair))

    def normal(self, bits: Bits, values: Floats) -> Places:
        """Write standard normal values."""
        size = len(values)
        words, missing, pairs = self._words[:size], self._is_missing[:size], self._pairs[:size]
        positions = self._positions[:size]
        bits.fill(words)
        np.copyto(positions, words, casting="unsafe")
        np.bitwise_and(words, PICKS - 1, out=words)
        torch.index_select(self._table, 0, torch.from_numpy(words), out=self._found[:size])
        np.multiply(positions, pairs["slope"], out=positions)
        np.add(positions, pairs["middle"], out=values)
        np.greater_equal(words, self._first_of_remainder, out=missing)
        return np.flatnonzero(missing)

    def noised(self, bits: Bits, total: Floats | None, update: Floats, std: float, divisor: float) -> Places:
        """Write (total + std · z) / divisor."""
        noise: Floats = self._positions[: len(update)]
        places = self.normal(bits, noise)
        np.multiply(noise, std, out=noise)
        np.add(noise, update if total is None else total, out=noise)
        np.divide(noise, divisor, out=update)
        return places
