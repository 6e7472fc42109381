"""The compiled backend gives the values of the definition, bit for bit, and is left aside where it cannot."""

from __future__ import annotations

import sys
import types
from collections import deque

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import HushgradWarning
from hushgrad.noise import compiled, gaussian
from hushgrad.noise.backends import ArrayBackend, Bits
from hushgrad.noise.compiled import CompiledBackend, fastest_backend
from hushgrad.noise.gaussian import noisy_update, standard_normal
from hushgrad.noise.strips import PICKS, strips
from hushgrad.randomness import Address, KeyStream

pytest.importorskip("numba", reason="the compiled backend needs numba: pip install 'hushgrad[fast]'")

from hushgrad.noise.loops import BLOCK, LOOPS

WORDS = [np.dtype(np.int32), np.dtype(np.int64)]
CHUNK = CompiledBackend.size
EDGES = [1, 2, 3, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK + 77, CHUNK - 1, CHUNK, CHUNK + 1, 2 * CHUNK + 12_345]


@pytest.fixture
def by(monkeypatch):
    """Run a function by a given backend."""

    def run(backend, draw):
        monkeypatch.setattr(gaussian, "backend", lambda: backend)
        monkeypatch.setattr(gaussian, "_idle", {word: deque() for word in gaussian._idle})
        return draw()

    return run


@pytest.mark.parametrize("count", EDGES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_draw_has_the_same_values_with_numba_and_without(by, count, dtype):
    """Guarantee: a draw has the same values with numba and without.

    In every bit; alone, and added to a sum in its own memory and in new memory.
    """
    stream, total = KeyStream.fixed_for_tests(count), torch.linspace(-3, 2, count, dtype=dtype)

    def draws():
        z = standard_normal((count,), dtype=dtype, device="cpu", stream=stream, address=Address(1, 2))
        arguments = {"noise_std": 1.3, "divisor": 7.1, "stream": stream, "address": Address(2)}
        return [z, noisy_update(total, **arguments), noisy_update(total.clone(), **arguments, overwrite=True)]

    integer = torch.int32 if dtype == torch.float32 else torch.int64
    for one, other in zip(by(CompiledBackend, draws), by(ArrayBackend, draws), strict=True):
        assert torch.equal(one.view(integer), other.view(integer))


class Words:
    """A stream of given words."""

    def __init__(self, words):
        self.words = words

    def fill(self, buffer, address, offset=0):
        start = offset // buffer.itemsize
        buffer[:] = self.words[start : start + len(buffer)]


@pytest.mark.parametrize("word", WORDS)
@pytest.mark.parametrize(
    "places",
    [
        [],
        [0],
        [BLOCK - 1, BLOCK],
        [3 * BLOCK + 4],
        [0, 1, 2, BLOCK, 4 * BLOCK - 1, 4 * BLOCK + 8],
        range(4 * BLOCK + 9),
    ],
)
def test_the_same_words_are_found_to_pick_the_remainder(word, places):
    words = np.arange(4 * BLOCK + 9, dtype=word) << 16
    words[list(places)] |= PICKS - 1
    words[[7, 8]] |= 2 * strips().count - 1  # the last strip is none
    found = []
    for backend in (ArrayBackend(word), CompiledBackend(word)):
        values = np.ones(len(words), f"f{word.itemsize}")
        found.append(backend.normal(Bits(Words(words), Address(0), 0), values).tolist())
        assert (values[found[-1]] == 0).all()
    assert found[0] == found[1]
    assert set(found[0]) == set(places)


@given(
    st.lists(st.integers(-(2**31), 2**31 - 1), min_size=1, max_size=40),
    st.floats(1e-30, 1e30),
    st.floats(1e-3, 1e30),
    st.floats(-1e30, 1e30),
)
@settings(deadline=None)
def test_sums_are_rounded_as_by_array_operations(words, std, divisor, total):
    """Any words, and scales at which products overflow or vanish."""
    stream, results = Words(np.array(words, np.int32)), []
    for backend in (ArrayBackend(WORDS[0]), CompiledBackend(WORDS[0])):
        sums = np.full(len(words), total, np.float32)
        with np.errstate(all="ignore"):
            backend.noised(Bits(stream, Address(0), 0), None, sums, std, divisor)
        results.append(sums)
    assert np.array_equal(results[0], results[1], equal_nan=True)


def test_drawing_by_the_loop_leaves_words_and_table_alone():
    """The cipher's bits pass through a few kilobytes: a draw of a whole chunk writes to no more of its scratch."""
    if LOOPS[WORDS[0]][1] is None:
        pytest.skip("this processor has no AES instructions")
    backend = CompiledBackend(WORDS[0])
    backend._words[:] = 7
    table = backend._table.copy()
    backend.normal(Bits(KeyStream.fixed_for_tests(1), Address(0), 0), np.empty(CHUNK, np.float32))
    assert (backend._words[BLOCK:] == 7).all()
    np.testing.assert_array_equal(backend._table, table)


def test_the_choice_is_the_compiled_passes():
    assert fastest_backend() is CompiledBackend


def test_without_numba_the_definition_runs(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", None)
    assert fastest_backend() is ArrayBackend


def test_with_numba_switched_off_the_definition_runs(monkeypatch):
    monkeypatch.setattr("numba.config.DISABLE_JIT", 1)
    assert fastest_backend() is ArrayBackend


def test_a_numba_that_fails_is_left_aside_with_a_warning(monkeypatch):
    monkeypatch.setitem(sys.modules, "numba", types.ModuleType("numba"))
    with pytest.warns(HushgradWarning, match=r'AttributeError.*pip install --upgrade "hushgrad\[fast\]"'):
        assert fastest_backend() is ArrayBackend


@pytest.mark.parametrize("which", ["of words", "of a stream"])
def test_code_that_gives_other_values_is_left_aside_with_a_warning(monkeypatch, which):
    """One unit in the last place of one value is enough."""
    of_words, of_stream = LOOPS[WORDS[0]]
    if of_stream is None and which == "of a stream":
        pytest.skip("this processor has no AES instructions")

    def off(loop):
        def wrong(*arguments):
            found = loop(*arguments)
            values = arguments[-7]
            values[1234] = np.nextafter(values[1234], np.float32(9))
            return found

        return wrong

    broken = (off(of_words), of_stream) if which == "of words" else (of_words, off(of_stream))
    monkeypatch.setitem(LOOPS, WORDS[0], broken)
    with pytest.warns(HushgradWarning, match="other values than NumPy"):
        assert fastest_backend() is ArrayBackend


def test_code_that_misses_a_place_is_left_aside(monkeypatch):
    of_words, of_stream = LOOPS[WORDS[1]]
    monkeypatch.setitem(LOOPS, WORDS[1], (lambda *arguments: of_words(*arguments) - 1, of_stream))
    with pytest.warns(HushgradWarning, match="other values than NumPy"):
        assert compiled.fastest_backend() is ArrayBackend
