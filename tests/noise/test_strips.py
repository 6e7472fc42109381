"""The strips and their remainder are the normal distribution, and the table says what the strips are."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import integrate, stats
from scipy.special import ndtr

from hushgrad.noise.strips import OUTERMOST, PICKS, density, pick_table, remainder, strips


def remainder_mass_below(x):
    """∫ from 0 to x of what the strips of one side leave of the density."""
    right = strips()
    heights = np.append(right.heights, 0.0)
    strip = np.searchsorted(right.edges, x, side="right") - 1
    below = np.append(0.0, np.cumsum(np.diff(right.edges) * right.heights))[strip]
    return ndtr(x) - 0.5 - below - (x - right.edges[strip]) * heights[strip]


def words_for(first, across, up):
    return np.array([[first, across, up]], dtype=np.uint64)


def test_no_strip_reaches_above_the_density():
    """No strip reaches above the density, so strips and remainder together are exactly the distribution.

    The density falls, so a strip lies below it if its right end does. The margin is larger than rounding errors.
    """
    right = strips()
    assert (right.heights < density(right.edges[1:]) * (1 - 1e-10)).all()


def test_strips_have_equal_areas_and_lie_next_to_each_other_from_zero_on():
    right = strips()
    np.testing.assert_allclose(np.diff(right.edges) * right.heights, 1 / PICKS, rtol=1e-14)
    assert right.edges[0] == 0
    assert (np.diff(right.edges) > 0).all()
    assert OUTERMOST - 0.1 < right.edges[-1] <= OUTERMOST
    assert np.diff(right.edges).max() / PICKS < 7e-7


def test_the_picks_of_the_remainder_are_as_many_as_it_has_probability():
    right = strips()
    left_over = sum(
        integrate.quad(density, begin, end, epsabs=0, epsrel=1e-12)[0] - 1 / PICKS
        for begin, end in zip(right.edges[:-1:64], right.edges[1::64], strict=True)
    )
    assert left_over >= 0
    mass = 2 * (remainder_mass_below(right.edges[-1]) + ndtr(-right.edges[-1]))
    assert mass == pytest.approx((PICKS - 2 * right.count) / PICKS, rel=1e-9)
    assert mass < 1 / 3000


def test_boxes_enclose_the_remainder():
    right = strips()
    widths = np.diff(right.edges)
    np.testing.assert_allclose(
        np.diff(right.boxes[:-1], prepend=0), widths * (density(right.edges[:-1]) - right.heights), rtol=1e-6
    )
    assert right.boxes[-1] - right.boxes[-2] == pytest.approx(ndtr(-right.edges[-1]), rel=1e-9)


@pytest.mark.statistical
def test_values_of_the_remainder_follow_its_distribution():
    """Kolmogorov-Smirnov of |x| for 7e5 values, and the counts of signs and of tails; false alarm 3e-6."""
    candidates = np.random.default_rng(3).integers(0, 1 << 64, (1_000_000, 3), dtype=np.uint64)
    x = remainder(candidates)
    assert len(x) > 700_000
    right = strips()
    total = (PICKS / 2 - right.count) / PICKS

    def distribution(size):
        inside = remainder_mass_below(np.minimum(size, right.edges[-1]))
        return (inside + ndtr(size) - ndtr(np.minimum(size, right.edges[-1]))) / total

    assert stats.kstest(np.abs(x), distribution).pvalue > 1e-6
    assert stats.binomtest(int((x > 0).sum()), len(x)).pvalue > 1e-6
    tails = int((np.abs(x) > right.edges[-1]).sum())
    assert stats.binomtest(tails, len(x), ndtr(-right.edges[-1]) / total).pvalue > 1e-6


@pytest.mark.statistical
def test_the_tail_of_the_remainder_is_that_of_the_normal_distribution():
    """Kolmogorov-Smirnov of the two-sided tail beyond the outermost edge, 4e5 values; false alarm 1e-6."""
    x = np.abs(remainder(np.random.default_rng(4).integers(0, 1 << 64, (1_000_000, 3), dtype=np.uint64)))
    edge = strips().edges[-1]
    assert stats.kstest(stats.norm.sf(x[x > edge]) / stats.norm.sf(edge), "uniform").pvalue > 1e-6


@given(st.integers(0, 2**64 - 1), st.sampled_from([0, 2**64 - 1]), st.sampled_from([0, 2**64 - 1]))
def test_extreme_candidates_give_finite_values_or_none(first, across, up):
    x = remainder(words_for(first, across, up))
    assert len(x) <= 1
    assert np.isfinite(x).all()


def test_the_tail_reaches_beyond_8_and_up_to_10():
    """Guarantee: the tail is drawn from 64 bits of its own; the largest possible `abs(z)` is 10.1."""
    assert 10.1 < remainder(words_for(2**64 - 2, 0, 0))[0] < 10.11
    assert -10.11 < remainder(words_for(2**64 - 1, 0, 0))[0] < -10.1
    for across in (2**10, 2**20, 2**63):
        tail = (across + 0.5) * 2.0**-64 * stats.norm.sf(strips().edges[-1])
        assert stats.norm.sf(remainder(words_for(2**64 - 2, across, 0))[0]) == pytest.approx(tail, rel=1e-9)


@pytest.mark.parametrize(("bits", "precision"), [(32, 2.0**-23), (64, 2.0**-52)])
def test_words_of_a_pick_are_spread_over_its_whole_strip_and_nowhere_else(bits, precision):
    """A pick's lowest and highest word lie half a spacing inside the ends, up to two units in the last place."""
    right, table = strips(), pick_table(bits)
    picks = np.arange(PICKS)
    ends = []
    for high in (-(1 << (bits - 17)), (1 << (bits - 17)) - 1):
        word = np.float64(high) * PICKS + picks
        ends.append(table["middle"].astype(np.float64) + table["slope"].astype(np.float64) * word)
    low, high = ends
    for begin, left, far in (
        (0, right.edges[:-1], right.edges[1:]),
        (right.count, -right.edges[:-1], -right.edges[1:]),
    ):
        mine = slice(begin, begin + right.count)
        spacing = np.abs(far - left) * 2.0 ** (16 - bits)
        slack = 2 * precision * np.maximum(np.abs(left), np.abs(far))
        assert (np.abs(low[mine] - left - np.sign(far) * spacing / 2) <= slack).all()
        assert (np.abs(high[mine] - far + np.sign(far) * spacing / 2) <= slack).all()


@pytest.mark.parametrize("bits", [32, 64])
def test_picks_of_the_remainder_give_zero(bits):
    rest = pick_table(bits)[2 * strips().count :]
    assert (rest["middle"] == 0).all()
    assert (rest["slope"] == 0).all()
