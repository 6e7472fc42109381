"""The cells of the sampler have the law of rounded Gaussian noise: computed with 60 digits, and drawn."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from hushgrad.noise import cells
from hushgrad.noise.cells import boxes, cells_of_positions, distance, farthest, judged, margin
from hushgrad.noise.strips import PICKS, pick_table, strips

RATIO = 1.1 * 2.0**30


@pytest.fixture(autouse=True)
def sixty_digits():
    with mpmath.workdps(60):
        yield


def density(x):
    return mpmath.npdf(mpmath.mpf(x))


def exact(fraction):
    return mpmath.mpf(fraction.numerator) / fraction.denominator


def place_of(box, across):
    """Return the middle of one of 2**128 positions across a box."""
    left, right = (Fraction(float(edge)) for edge in boxes().edges[box : box + 2])
    return left + (right - left) * Fraction(2 * across + 1, 2 << 128)


def random_words(count, seed):
    return np.random.default_rng(seed).integers(0, 1 << 64, size=count, dtype=np.uint64)


def candidate(box, across, up, sign=0):
    """Return a candidate for a place across a box and one up, both in 128 bits."""
    found = boxes()
    low = (1 << 64) - 1
    return np.array([[int(found.ends[box]) - 1, across >> 64, across & low, up >> 64, up & low, sign]], dtype=np.uint64)


def test_no_strip_is_above_the_density_and_no_box_below_it():
    """Guarantee: no box is lower than the density inside of it, and each is picked in exact proportion to its area."""
    found = boxes()
    every = range(0, len(found.widths), 23)
    for k in (*every, strips().count - 1, strips().count, len(found.widths) - 1):
        left, right = Fraction(float(found.edges[k])), Fraction(float(found.edges[k + 1]))
        width = right - left
        assert width == Fraction(float(found.widths[k]))
        area = Fraction(1, PICKS) if k < strips().count else Fraction(0)
        assert exact(area / width) <= density(exact(right))
        height = (int(found.words[k]) * Fraction(found.unit) + area) / width
        assert exact(height) >= density(exact(left))
    assert int(found.words.astype(object).sum()) == int(found.ends[-1]) < 1 << 64


@pytest.mark.slow
def test_no_strip_at_all_is_above_the_density_and_no_box_below_it():
    found = boxes()
    for k in range(len(found.widths)):
        area = Fraction(1, PICKS) if k < strips().count else Fraction(0)
        width = Fraction(float(found.widths[k]))
        assert exact(area / width) <= density(float(found.edges[k + 1]))
        assert exact((int(found.words[k]) * Fraction(found.unit) + area) / width) >= density(float(found.edges[k]))


def test_edges_are_whole_numbers_of_the_bits_that_they_are_taken_to_have():
    for edge in boxes().edges:
        assert (Fraction(float(edge)) * (1 << 80)).denominator == 1


def below(edge):
    """Return how likely a strip is picked and a position in it below `edge` >= 0, and the rest of the density there."""
    right, found = strips(), boxes()
    k = int(np.searchsorted(found.edges, float(edge), side="right")) - 1
    on_strips = Fraction(min(k, right.count), PICKS)
    if k < right.count:
        left, width = Fraction(float(found.edges[k])), Fraction(float(found.widths[k]))
        on_strips += (edge - left) / width / PICKS
    rest = mpmath.ncdf(exact(edge)) - mpmath.mpf(1) / 2 - exact(on_strips)
    return exact(on_strips), rest


@pytest.mark.parametrize("ratio", [1.0, 8.0, 2.0**30])
def test_the_law_of_the_cells_is_that_of_rounded_gaussian_noise_to_ten_standard_deviations(ratio):
    """Guarantee: the law of the cells differs from that of rounded Gaussian noise by at most `distance(ratio)`.

    By the strips, which are picked as often as they have area, and by the rest, which is accepted in proportion to what
    the strips leave of the density. Nothing is sampled.
    """
    left_picks = mpmath.mpf(PICKS - 2 * strips().count) / PICKS
    all_rest = below(Fraction(farthest()))[1]
    worst = 0
    for number in np.unique(np.linspace(0, 10, 40) * ratio).round():
        low, high = (abs((2 * Fraction(float(number)) + side) / (2 * Fraction(ratio))) for side in (-1, 1))
        if number == 0:
            on_strips, rest = (2 * part for part in below(high))
        else:
            on_strips, rest = (one - other for one, other in zip(below(high), below(low), strict=True))
        law = on_strips + left_picks * rest / (2 * all_rest)
        truth = mpmath.ncdf(-exact(low)) - mpmath.ncdf(-exact(high)) if number else 1 - 2 * mpmath.ncdf(-exact(high))
        assert abs(law / truth - 1) < 1e-30
        worst = max(worst, abs(law - truth))
    assert worst < distance(ratio)


def test_the_distance_is_that_of_the_cut_tails_and_the_last_bits():
    tails = 2 * mpmath.ncdf(-mpmath.mpf(farthest()))
    assert farthest() > 12.7
    for ratio in (1.0, RATIO, 2.0**32):
        edges = 2 * farthest() * ratio + 2 * len(boxes().widths)
        assert tails + edges * mpmath.mpf(2) ** -128 < distance(ratio) < 2e-27


@pytest.mark.parametrize("ratio", [1.0, 1000.0, RATIO, 2.0**32])
def test_float64_errs_by_less_than_the_margin(ratio):
    """At both ends of the positions of a pick, and inside: all that a position may be lies within the margin."""
    table, count = pick_table(64), strips().count
    rng = np.random.default_rng(1)
    for pick in (0, 1, count - 1, count, 2 * count - 1, *rng.integers(0, 2 * count, 1500)):
        sign, strip = (1, pick) if pick < count else (-1, pick - count)
        for position in (0, (1 << 48) - 1, int(rng.integers(1 << 48))):
            word = (position - (1 << 47)) << 16 | int(pick)
            value = (np.float64(np.int64(word)) * table["slope"][pick] + table["middle"][pick]) * ratio
            for end in (0, 1):
                left, width = Fraction(float(strips().edges[strip])), Fraction(float(boxes().widths[strip]))
                truth = sign * (left + width * Fraction(position + end, 1 << 48)) * Fraction(ratio)
                assert abs(Fraction(float(value)) - truth) < Fraction(margin(ratio)) / 2


def test_a_position_at_the_edge_of_a_cell_is_decided_by_its_further_bits():
    ratio, strip = 1000.0, 20_000
    left, width = (Fraction(float(part[strip])) for part in (boxes().edges, boxes().widths))
    edge = (Fraction(round(float(left + width / 2) * ratio)) + Fraction(1, 2)) / Fraction(ratio)
    place = (edge - left) / width * (1 << 112)
    finest = int(place)
    word = np.array([((finest >> 64) - (1 << 47)) << 16 | strip])
    cell = float(edge * Fraction(ratio) - Fraction(1, 2))
    for step, expected in ((-1, cell), (1, cell + 1)):
        further = np.array([(finest + step) & ((1 << 64) - 1)], dtype=np.uint64)
        assert cells_of_positions(word, further, ratio) == [expected]
        mirrored = word + strips().count
        assert cells_of_positions(mirrored, further, ratio) == [-expected]


def test_a_candidate_is_accepted_exactly_below_the_density():
    """Points one 2**-128 part of a box above and below the density, where float64 cannot tell."""
    found = boxes()
    for box in (0, 5, 12_345, strips().count - 1, strips().count, strips().count + 100):
        across = 3 << 120
        x = exact(place_of(box, across))
        width = mpmath.mpf(float(found.widths[box]))
        area = mpmath.mpf(1) / PICKS if box < strips().count else 0
        share = (density(x) * width - area) / (int(found.words[box]) * mpmath.mpf(found.unit))
        assert 0 < share < 1
        up = int(mpmath.floor(share * mpmath.mpf(2) ** 128))
        for step, expected in ((-2, True), (2, False)):
            assert judged(candidate(box, across, up + step), RATIO)[1] == [expected]


def test_candidates_stand_for_the_cells_that_whole_numbers_give_them():
    rows = random_words((400, cells.CANDIDATE_WORDS), 2)
    for ratio in (1.0, RATIO, 2.0**32):
        values, accepted = judged(rows, ratio)
        for row, value, is_in in zip(rows, values, accepted, strict=True):
            box = min(int(np.searchsorted(boxes().ends, row[0], side="right")), len(boxes().widths) - 1)
            place = place_of(box, int(row[1]) << 64 | int(row[2])) * Fraction(ratio)
            sign = -1 if int(row[5]) & 1 else 1
            assert value == sign * math.floor(place + Fraction(1, 2))
            assert is_in == cells._is_below(boxes(), box, row)


def test_a_word_beyond_the_last_box_stands_for_nothing():
    beyond = candidate(0, 1 << 127, 0)
    beyond[0, 0] = (1 << 64) - 1
    assert not judged(beyond, RATIO)[1].any()


def test_the_remainder_has_the_shape_of_what_the_strips_leave():
    """Fixed key; beyond 4 standard deviations a share of 0.2122 of the remainder: at 200,000, five standard errors."""
    values, accepted = judged(random_words((200_000, cells.CANDIDATE_WORDS), 3), RATIO)
    z = values[accepted] / RATIO
    share = float(2 * mpmath.ncdf(-4) * PICKS / (PICKS - 2 * strips().count))
    assert np.mean(np.abs(z) > 4) == pytest.approx(share, abs=5 * (share / len(z)) ** 0.5)
    assert np.mean(z > 0) == pytest.approx(0.5, abs=5 / (2 * len(z) ** 0.5))
