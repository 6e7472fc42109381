"""Noise on a grid: what is handed out is a function of a whole number, and every whole number can come of every sum."""

from __future__ import annotations

from collections import deque
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.errors import HushgradWarning, InvalidArgumentError
from hushgrad.noise import compiled, grid, grid_backends
from hushgrad.noise.backends import Bits
from hushgrad.noise.cells import CANDIDATE_WORDS, boxes, farthest, judged
from hushgrad.noise.gaussian import Noised
from hushgrad.noise.grid import Grid, by_torch, grid_updates, normal_cells
from hushgrad.noise.grid_backends import ArrayBackend, CompiledBackend
from hushgrad.noise.strips import strips
from hushgrad.randomness import Address, KeyStream

G, RATIO = 2.0**-30, 1.1 * 2.0**30
KINDS = [ArrayBackend]
try:
    import numba  # noqa: F401

    KINDS.append(CompiledBackend)
except ModuleNotFoundError:
    pass


class Words:
    """A stream of given words."""

    def __init__(self, words):
        self.words = words

    def fill(self, buffer, address, offset=0):
        start = offset // buffer.itemsize
        buffer[:] = self.words[start : start + len(buffer)]


@pytest.fixture
def by(monkeypatch):
    """Run a draw by a given backend."""

    def run(kind, draw):
        monkeypatch.setattr(grid, "fastest_grid_backend", lambda: kind)
        monkeypatch.setattr(grid, "_idle", {word: deque() for word in grid._idle})
        return draw()

    return run


def update(total, *, std=1.1, divisor=250.0, seed=7, overwrite=False, spacing=G):
    parts = [Noised(total, Address(3, 1), overwrite)]
    stream = KeyStream.fixed_for_tests(seed)
    return grid_updates(parts, noise_std=std, spacing=spacing, divisor=divisor, stream=stream)[0]


def cells_of(total, *, std=1.1, spacing=G, seed=7):
    """Return the cells of the sums plus those of the noise of `update`, as whole numbers."""
    noise = normal_cells(total.numel(), std / spacing, KeyStream.fixed_for_tests(seed), Address(3, 1))
    return [round(Fraction(float(s)) / Fraction(spacing)) + int(k) for s, k in zip(total, noise, strict=True)]


@pytest.mark.skipif(len(KINDS) < 2, reason="the compiled backend needs numba: pip install 'hushgrad[fast]'")
@pytest.mark.parametrize("count", [1, 511, 512, 513, 3000, CompiledBackend.size + 77, 2 * ArrayBackend.size + 5])
def test_a_draw_has_the_same_bits_with_numba_and_without(by, count):
    total = torch.linspace(-3, 2, count, dtype=torch.float64)

    def draws():
        return [update(total), update(total.clone(), overwrite=True), update(torch.zeros_like(total))]

    for one, other in zip(by(CompiledBackend, draws), by(ArrayBackend, draws), strict=True):
        assert torch.equal(one.view(torch.int64), other.view(torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_backends_agree_on_every_pick(kind):
    from hushgrad.noise.compiled import _EveryPick

    grid_backends.require_same_values(kind, _EveryPick())


def test_what_is_handed_out_is_a_function_of_a_whole_number():
    """Guarantee: what is handed out is a function of the sum's cell plus the noise's cell, and of public constants.

    It is that number times g over the divisor, rounded once: by whole numbers of Python.
    """
    total = torch.from_numpy(np.random.default_rng(1).normal(size=2000))
    found = update(total)
    for value, number in zip(found.tolist(), cells_of(total), strict=True):
        assert value == float(Fraction(number) * Fraction(G) / 250)  # Python rounds once, correctly


@settings(max_examples=40, deadline=None)
@given(
    st.lists(st.floats(-1e3, 1e3), min_size=1, max_size=20),
    st.integers(-40, 0),
    st.floats(1e-3, 1e3),
    st.booleans(),
)
def test_two_sums_in_one_cell_release_the_same_bits(values, exponent, divisor, overwrite):
    """Also the sign of a 0, which would tell of a sum a little below 0."""
    spacing = 2.0**exponent
    std = 3.3 * spacing
    total = torch.tensor(values, dtype=torch.float64)
    cells = [float(round(Fraction(v) / Fraction(spacing)) * Fraction(spacing)) for v in values]
    arguments = {"std": std, "spacing": spacing, "divisor": divisor}
    one = update(total.clone(), overwrite=overwrite, **arguments)
    other = update(torch.tensor(cells, dtype=torch.float64), **arguments)
    assert torch.equal(one.view(torch.int64), other.view(torch.int64))


@pytest.mark.parametrize("kind", KINDS)
def test_the_sign_of_a_zero_says_nothing(by, kind):
    """A sum a little below 0 rounds to -0, and noise of a cell 0 from below is -0, too."""
    total = torch.tensor([-0.1, -0.0, 0.0, 0.1], dtype=torch.float64).repeat(3000)
    found = by(kind, lambda: update(total, std=1.0, spacing=1.0, divisor=3.0))
    assert (found == 0).sum() > 1000
    assert not torch.signbit(found[found == 0]).any()
    assert not torch.signbit(by_torch(total, -torch.zeros_like(total), Grid(1.0, 1.0, 3.0))).any()


def word_of(cell, ratio):
    """Return a word whose noise is this cell; of the strips only."""
    place = abs(Fraction(cell) / Fraction(ratio))
    strip = int(np.searchsorted(boxes().edges, float(place), side="right")) - 1
    assert strip < strips().count
    left, width = Fraction(float(boxes().edges[strip])), Fraction(float(boxes().widths[strip]))
    position = int((place - left) / width * (1 << 48))
    return (position - (1 << 47)) << 16 | (strip if cell >= 0 else strips().count + strip)


def candidate_of(cell, ratio):
    """Return a candidate of the remainder that is accepted and stands for this cell."""
    place = abs(Fraction(cell) / Fraction(ratio))
    box = int(np.searchsorted(boxes().edges, float(place), side="right")) - 1
    left, width = Fraction(float(boxes().edges[box])), Fraction(float(boxes().widths[box]))
    across, low = int((place - left) / width * (1 << 128)), (1 << 64) - 1
    row = [int(boxes().ends[box]) - 1, across >> 64, across & low, 0, 0, int(cell < 0)]
    return np.array([row], dtype=np.uint64)


@pytest.mark.parametrize("kind", KINDS)
def test_a_cell_and_those_a_whole_clip_norm_away_are_all_images_of_the_sampler(kind):
    """On integers: k and k ± C/g, so that what one neighbour releases the other can release, too. Up to 12 std."""
    step = round(1 / G)  # a record that adds C to one value
    rng = np.random.default_rng(5)
    edge = int(strips().edges[-1] * RATIO)
    numbers = [0, 1, -1, 2, step - 1, step, edge - step - 9, step - edge + 9, *rng.integers(-edge, edge, 1500).tolist()]
    wanted = [k + shift for k in numbers for shift in (0, step, -step) if abs(k + shift) < edge - 8]
    assert len(wanted) > 3500
    words = np.array([word_of(k, RATIO) for k in wanted])
    found = np.zeros(len(wanted))
    left = kind(grid_backends.WORD).on_grid(Bits(Words(words), Address(0), 0), None, found, Grid(1.0, RATIO, 1.0))
    assert not len(left.places)
    assert found.astype(np.int64).tolist() == wanted
    far = int(12 * RATIO)
    bases = [sign * (far - int(at)) for sign in (1, -1) for at in rng.integers(0, 11 * RATIO, 200)]
    tails = [base + shift for base in bases for shift in (0, step, -step)]
    tails = [k for k in tails if abs(k) < farthest() * RATIO - 1]
    values, accepted = judged(np.concatenate([candidate_of(k, RATIO) for k in tails]), RATIO)
    assert accepted.all()
    assert values.astype(np.int64).tolist() == tails


def test_left_out_positions_and_the_remainder_are_completed_with_the_noise_that_is_theirs(monkeypatch):
    """With a margin of 0.02 of a cell, one value in 25 is decided by whole numbers: they are those of float64."""
    plain = normal_cells(40_000, RATIO, KeyStream.fixed_for_tests(1), Address(2))
    monkeypatch.setattr(grid_backends, "margin", lambda ratio: 0.02)
    assert np.array_equal(normal_cells(40_000, RATIO, KeyStream.fixed_for_tests(1), Address(2)), plain)


def test_moments_and_shape_are_those_of_the_normal_distribution():
    """A fixed key. Of 2**20 values: mean and variance within five standard errors, and Kolmogorov-Smirnov at 1e-6."""
    z = normal_cells(1 << 20, RATIO, KeyStream.fixed_for_tests(11), Address(1)) / RATIO
    count = len(z)
    for power, moment, error in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert (z**power).mean() == pytest.approx(moment, abs=5 * (error / count) ** 0.5)
    assert stats.kstest(z, "norm").pvalue > 1e-6
    for far in (3.0, 4.0):
        expected = 2 * count * stats.norm.sf(far)
        assert (np.abs(z) > far).sum() == pytest.approx(expected, abs=5 * expected**0.5)


def test_cells_of_a_coarse_grid_have_the_probabilities_of_rounded_noise():
    """A fixed key; χ² of the cells -3 to 3 of a grid of one standard deviation, false alarm 1e-6."""
    k = normal_cells(1 << 18, 1.0, KeyStream.fixed_for_tests(12), Address(1))
    edges = np.arange(-3.5, 4)
    expected = np.diff(stats.norm.cdf(edges)) * len(k)
    counts = np.array([(k == cell).sum() for cell in range(-3, 4)])
    assert stats.chi2.sf(((counts - expected) ** 2 / expected).sum(), len(counts)) > 1e-6


def test_values_depend_on_key_address_and_number_only(monkeypatch):
    stream, total = KeyStream.fixed_for_tests(4), torch.zeros(200_000, dtype=torch.float64)
    first = normal_cells(total.numel(), RATIO, stream, Address(1))
    monkeypatch.setattr(grid, "_idle", {word: deque() for word in grid._idle})
    for kind in KINDS:
        monkeypatch.setattr(kind, "size", 10_000)
        monkeypatch.setattr(kind, "worth_a_thread", 1)
    assert np.array_equal(normal_cells(total.numel(), RATIO, stream, Address(1)), first)
    assert not np.array_equal(normal_cells(total.numel(), RATIO, stream, Address(2)), first)


def test_sums_of_one_call_get_noise_of_their_own_addresses():
    totals = [torch.randn(n, dtype=torch.float64) for n in (5, 70_000, 3)]
    parts = [Noised(total, Address(1, item)) for item, total in enumerate(totals)]
    stream = KeyStream.fixed_for_tests(5)
    together = grid_updates(parts, noise_std=1.0, spacing=G, divisor=2.0, stream=stream)
    for part, found in zip(parts, together, strict=True):
        [alone] = grid_updates([part], noise_std=1.0, spacing=G, divisor=2.0, stream=stream)
        assert torch.equal(alone, found)


def test_torch_gives_the_same_bits_as_the_backend():
    """What runs on other devices, run on the CPU."""
    total = torch.randn(50_000, dtype=torch.float64)
    noise = normal_cells(total.numel(), 1.1 / G, KeyStream.fixed_for_tests(7), Address(3, 1))
    found = by_torch(total, torch.from_numpy(noise), Grid(G, 1.1 / G, 250.0))
    assert torch.equal(found.view(torch.int64), update(total).view(torch.int64))


def test_without_noise_nothing_is_rounded():
    total = torch.randn(10, dtype=torch.float64)
    assert torch.equal(update(total, std=0.0, divisor=2.0), total / 2)


@pytest.mark.parametrize("spacing", [0.3, 2.0, 2.0**-40, 0.0, -0.5, float("nan")])
def test_a_spacing_that_is_no_power_of_two_in_range_is_refused(spacing):
    with pytest.raises(InvalidArgumentError):
        update(torch.zeros(3, dtype=torch.float64), std=1.0, spacing=spacing)


def test_a_sum_in_float32_is_refused():
    with pytest.raises(InvalidArgumentError, match="float64"):
        update(torch.zeros(3))


def test_a_compiled_loop_that_gives_other_values_is_left_aside_with_a_warning(monkeypatch):
    def differ(kind, words):
        raise ArithmeticError("its code gives other values than NumPy")

    pytest.importorskip("numba")
    monkeypatch.setattr(grid_backends, "require_same_values", differ)
    with pytest.warns(HushgradWarning, match="other values than NumPy"):
        assert compiled.fastest_grid_backend.__wrapped__() is ArrayBackend


def test_candidates_have_an_even_number_of_words():
    """Offsets into the stream stay multiples of a block."""
    assert CANDIDATE_WORDS % 2 == 0
