"""What a thread computes on a chunk of words for noise on a grid: sums on the grid, with noise on the grid.

`ArrayBackend` is the definition, one array operation after another. `hushgrad.noise.grid_loops` has the same as one
loop, used where numba is installed.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from hushgrad.noise.backends import Bits, Floats, Places
from hushgrad.noise.cells import margin
from hushgrad.noise.strips import PICKS, pick_table, strips
from hushgrad.randomness import BLOCK_BYTES, Address, KeyStream

WORD = np.dtype(np.int64)


@dataclass(frozen=True, slots=True)
class Grid:
    """A grid, and what is done on it.

    Attributes:
        spacing: g, a power of two, in units of the gradient.
        ratio: standard deviation of the noise in cells of the grid.
        divisor: what a grid value times g is divided by.
    """

    spacing: float
    ratio: float
    divisor: float

    @property
    def certain(self) -> float:
        """How far from the middle of a cell float64 is sure of it, in cells."""
        return 0.5 - margin(self.ratio)


class LeftOut(NamedTuple):
    """The places of a chunk that got no noise yet, in rising order, their words, and their sums in cells (never -0)."""

    places: Places
    words: NDArray[np.int64]
    sums: NDArray[np.float64]

    def first(self, count: int) -> LeftOut:
        """Return the first `count` of them."""
        return LeftOut(self.places[:count], self.words[:count], self.sums[:count])


class GridBackend(Protocol):
    """Computes a chunk of at most `size` values, with the scratch memory of one thread."""

    size: int
    worth_a_thread: int

    def on_grid(self, bits: Bits, total: Floats | None, update: Floats, grid: Grid) -> LeftOut:
        """Write (round(total / g) + k) · g / divisor into `update`, k the cell of the noise; all values are float64.

        Without a total, `update` holds it. What is returned lies in memory that the next call uses again.
        """


class ArrayBackend:
    """The definition: array operations, each over the whole chunk."""

    size = 1 << 16
    worth_a_thread = 1 << 15

    def __init__(self, word: np.dtype[Any]) -> None:
        size = self.size
        self._words: NDArray[np.int64] = np.empty(size, word)
        self._picks: NDArray[np.int64] = np.empty(size, word)
        self._noise, self._cells, self._is_left = np.empty(size), np.empty(size), np.empty(size, np.bool_)
        table = pick_table(64)
        self._pairs = np.empty(size, table.dtype)
        self._table, self._found = (torch.from_numpy(part.view(np.complex128)) for part in (table, self._pairs))
        self._first_of_remainder = 2 * strips().count

    def on_grid(self, bits: Bits, total: Floats | None, update: Floats, grid: Grid) -> LeftOut:
        """Write (round(total / g) + k) · g / divisor."""
        size = len(update)
        words, picks = self._words[:size], self._picks[:size]
        noise, cells = self._noise[:size], self._cells[:size]
        is_left, pairs = self._is_left[:size], self._pairs[:size]
        bits.fill(words)
        np.bitwise_and(words, PICKS - 1, out=picks)
        torch.index_select(self._table, 0, torch.from_numpy(picks), out=self._found[:size])
        np.copyto(noise, words, casting="unsafe")
        np.multiply(noise, pairs["slope"], out=noise)
        np.add(noise, pairs["middle"], out=noise)
        np.multiply(noise, grid.ratio, out=noise)
        np.rint(noise, out=cells)
        np.subtract(noise, cells, out=noise)
        np.abs(noise, out=noise)
        np.greater(noise, grid.certain, out=is_left)
        is_left |= picks >= self._first_of_remainder
        cells[is_left] = 0
        np.multiply(update if total is None else total, 1 / grid.spacing, out=noise)
        np.rint(noise, out=noise)
        places = np.flatnonzero(is_left)
        np.add(noise, cells, out=noise)
        np.add(noise, 0.0, out=noise)  # no -0, whose sign would tell of a sum below 0
        left = LeftOut(places, words[places], noise[places])
        np.multiply(noise, grid.spacing, out=noise)
        np.divide(noise, grid.divisor, out=update)
        return left


class CompiledBackend:
    """One compiled loop, which releases Python's lock, and runs the cipher where the processor has it."""

    size = 1 << 15
    worth_a_thread = 1 << 17

    def __init__(self, word: np.dtype[Any]) -> None:
        from hushgrad.noise import grid_loops

        self._of_words, self._of_stream = grid_loops.OF_WORDS, grid_loops.OF_STREAM
        self._words = np.empty(self.size, word)
        self._left = LeftOut(np.empty(self.size, np.intp), np.empty(self.size, word), np.empty(self.size))
        self._table = pick_table(64).view(np.complex128)
        self._first_of_remainder = 2 * strips().count

    def on_grid(self, bits: Bits, total: Floats | None, update: Floats, grid: Grid) -> LeftOut:
        """Write (round(total / g) + k) · g / divisor."""
        if total is not None:
            np.copyto(update, total)  # a loop over two arrays that might overlap would not be vectorised
        numbers = grid.ratio, grid.certain, grid.spacing, 1 / grid.spacing, grid.divisor
        rest = update, *numbers, self._table, self._first_of_remainder, *self._left
        if self._of_stream is not None and type(bits.stream) is KeyStream:
            key, address = np.frombuffer(bits.stream.key(bits.address), np.uint32), np.uint64(bits.address.packed())
            position = np.uint64(bits.start * WORD.itemsize // BLOCK_BYTES)
            found = self._of_stream(key, address, position, self._words, *rest)
        else:
            words = self._words[: len(update)]
            bits.fill(words)
            found = self._of_words(words, *rest)
        return self._left.first(found)


def require_same_values(kind: Callable[[np.dtype[Any]], GridBackend], of_every_pick: Any) -> None:
    """Raise `ArithmeticError` unless a kind of backend agrees with the definition in every bit, for all picks."""
    grid = Grid(2.0**-30, 1.1 * 2.0**30, 3.0)
    for stream in (of_every_pick, KeyStream.fixed_for_tests(0)):
        bits = Bits(stream, Address(1, 2, 3), 4)
        results = []
        for backend in (ArrayBackend(WORD), kind(WORD)):
            parts = []
            for begin in range(0, PICKS, CompiledBackend.size):
                sums = np.linspace(-1.0, 1.0, CompiledBackend.size)
                at = Bits(stream, bits.address, bits.start + begin)
                parts += [sums, *(part.copy() for part in backend.on_grid(at, None, sums, grid))]
            results.append([part.tobytes() for part in parts])
        if results[0] != results[1]:
            raise ArithmeticError("its code gives other values than NumPy")
