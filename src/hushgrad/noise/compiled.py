"""A compiled loop over a chunk, where numba is installed (`pip install "hushgrad[fast]"`).

Words and values are those of the stream and of `hushgrad.noise.backends.ArrayBackend`, bit for bit, so numba changes
nothing but speed. Before the compiled loops are used they must prove it, on a chunk with every pick.

Guarantee: a draw has the same values with numba and without.
"""

from __future__ import annotations

import warnings
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

import numpy as np

from hushgrad.errors import HushgradWarning
from hushgrad.noise import grid_backends
from hushgrad.noise.backends import ArrayBackend, Bits, Floats, Places, Words
from hushgrad.noise.strips import PICKS, pick_table, strips
from hushgrad.randomness import BLOCK_BYTES, Address, KeyStream

if TYPE_CHECKING:
    from hushgrad.noise.loops import Loop


class CompiledBackend:
    """One compiled loop, which releases Python's lock.

    Where the processor has instructions for AES, the loop also runs the cipher, a few words at a time, and leaves the
    rest of its scratch memory untouched.
    """

    size = 1 << 16  # threads wait for one another between chunks, and the last ones to end are waited for
    worth_a_thread = 1 << 18  # 200,000 values took 0.9 ms on one thread and 1.4 ms on two, 400,000 1.3 and 1.4 ms

    def __init__(self, word: np.dtype[Any]) -> None:
        from hushgrad.noise.loops import LOOPS

        self._words: Words = np.empty(self.size, word)
        self._of_words: Loop
        self._of_stream: Loop | None
        self._of_words, self._of_stream = LOOPS[word]
        table = pick_table(8 * word.itemsize)
        self._real = table.dtype["middle"].type
        # Middle and slope are fetched as one item of twice the width.
        self._table = table.view(np.uint64 if word.itemsize == 4 else np.complex128)
        self._first_of_remainder, self._places = 2 * strips().count, np.empty(self.size, np.intp)

    def normal(self, bits: Bits, values: Floats) -> Places:
        """Write standard normal values."""
        return self._pass(bits, values, False, 1.0, 1.0)

    def noised(self, bits: Bits, total: Floats | None, update: Floats, std: float, divisor: float) -> Places:
        """Write (total + std · z) / divisor."""
        if total is not None:
            np.copyto(update, total)  # a loop over two arrays that might overlap would not be vectorised
        return self._pass(bits, update, True, std, divisor)

    def _pass(self, bits: Bits, values: Floats, is_sum: bool, std: float, divisor: float) -> Places:
        std, divisor = self._real(std), self._real(divisor)
        rest = values, is_sum, std, divisor, self._table, self._first_of_remainder, self._places
        if self._of_stream is not None and type(bits.stream) is KeyStream:
            key, address = np.frombuffer(bits.stream.key(bits.address), np.uint32), np.uint64(bits.address.packed())
            position = np.uint64(bits.start * self._words.itemsize // BLOCK_BYTES)
            found = self._of_stream(key, address, position, self._words, *rest)
        else:
            words = self._words[: len(values)]
            bits.fill(words)
            found = self._of_words(words, *rest)
        return self._places[:found]


def fastest_backend() -> type[CompiledBackend] | type[ArrayBackend]:
    """Return the backend to use on this machine: the compiled one where numba is installed.

    Takes 0.4 s with numba, and a few seconds to compile once after an installation. Warns with a `HushgradWarning`
    where numba is installed and cannot be used.
    """
    try:
        numba = import_module("numba")
        if numba.config.DISABLE_JIT:
            return ArrayBackend  # the loop would run in Python
        from hushgrad.noise.loops import LOOPS

        for word in LOOPS:
            _require_same_values(word)
    except Exception as error:  # a numba that does not fit NumPy or the machine raises what it likes
        _warn_of(error)
        return ArrayBackend
    return CompiledBackend


@cache
def fastest_grid_backend() -> type[grid_backends.CompiledBackend] | type[grid_backends.ArrayBackend]:
    """Return the same for noise on a grid; asked for at the first draw of such noise."""
    try:
        numba = import_module("numba")
        if numba.config.DISABLE_JIT:
            return grid_backends.ArrayBackend
        grid_backends.require_same_values(grid_backends.CompiledBackend, _EveryPick())
    except Exception as error:
        _warn_of(error)
        return grid_backends.ArrayBackend
    return grid_backends.CompiledBackend


def _warn_of(error: Exception) -> None:
    """Warn that numba cannot be used; not where it is not installed."""
    if isinstance(error, ModuleNotFoundError) and error.name == "numba":
        return
    warnings.warn(
        f"numba is installed and cannot be used ({type(error).__name__}: {error}), so noise is drawn by NumPy: "
        f'the same values in more time. Run: pip install --upgrade "hushgrad[fast]", or uninstall numba',
        HushgradWarning,
        stacklevel=3,
    )


class _EveryPick:
    """A stream of words that end in each pick once, for the check of the loop over given words."""

    def fill(self, words: Words, address: Address, offset: int = 0) -> None:
        unsigned = np.dtype(f"u{words.itemsize}")
        odd = unsigned.type(0x9E3779B97F4A7C15 % (1 << 8 * words.itemsize))
        words[:] = (np.arange(len(words), dtype=unsigned) * odd).view(words.dtype)


def _require_same_values(word: np.dtype[Any]) -> None:
    """Raise unless the loops and the array operations agree in every bit: values, sums and places."""
    for stream in (_EveryPick(), KeyStream.fixed_for_tests(0)):
        bits = Bits(stream, Address(1, 2, 3), 4)
        results = []
        for backend in (ArrayBackend(word), CompiledBackend(word)):
            values = np.empty(PICKS, f"f{word.itemsize}")
            places = [backend.normal(bits, values).copy()]
            sums = values[::-1].copy()
            places.append(backend.noised(bits, None, sums, 1.7, 3.0))
            results.append([part.tobytes() for part in (values, sums, *places)])
        if results[0] != results[1]:
            raise ArithmeticError("its code gives other values than NumPy")
