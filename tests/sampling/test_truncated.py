"""Truncated Poisson draws: what exact Poisson sampling gives, and a uniformly random part of it where that is more."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import PoissonSampling, TruncatedPoissonSampling
from hushgrad.sampling.poisson import uniform_indices
from hushgrad.sampling.records import Cutting, cut


def draws(count, rate, most, number, seed=5):
    sampler = TruncatedPoissonSampling(rate, count, most).sampler(count, KeyStream.fixed_for_tests(seed))
    return [sampler.draw(step) for step in range(number)]


@pytest.mark.statistical
@pytest.mark.parametrize(("rate", "most"), [(0.3, 13), (0.3, 4), (1.0, 9), (0.9, 35)])
def test_a_truncated_draw_has_the_law_of_a_poisson_draw_that_is_cut_at_random(rate, most):
    """Guarantee: truncated, a draw is one of exact Poisson sampling, or a uniformly random `most` of it where it is
    larger, up to the same distance.

    Sizes by χ² against min(Binomial, B); inclusions by χ² given the sizes; pairs by their number; false alarm 1e-6
    each. 40 records, 6,000 draws.
    """
    count, number = 40, 6_000
    found = draws(count, rate, most, number)
    sizes = np.array([len(draw) for draw in found])
    chances = stats.binom.pmf(np.arange(count + 1), count, rate)
    law = np.append(chances[:most], chances[most:].sum())
    kept = law * number >= 5
    observed = np.bincount(sizes, minlength=most + 1)
    assert len(observed) == most + 1
    expected, observed = law[kept] * number, observed[kept]
    if kept.sum() > 1:
        statistic = ((observed - expected) ** 2 / expected).sum()
        assert stats.chi2.sf(statistic, kept.sum() - 1) > 1e-6
    table = np.zeros((number, count))
    for step, draw in enumerate(found):
        table[step, draw] = 1
    means = sizes[:, None] / count
    variance = (means * (1 - means)).sum() * count / (count - 1)  # of a uniform subset, summed over draws
    statistic = ((table - means).sum(0) ** 2).sum() / variance
    assert stats.chi2.sf(statistic, count - 1) > 1e-6
    together = float((table[:, ::2] * table[:, 1::2]).sum())  # 20 pairs that are neighbours
    pair = sizes * (sizes - 1) / (count * (count - 1))
    assert abs(together - 20 * pair.sum()) < 5 * math.sqrt(20 * max(pair.sum(), 1))


@given(st.integers(1, 60), st.floats(0.01, 1), st.integers(1, 80), st.integers(0, 9))
@settings(deadline=None, max_examples=50)
def test_truncation_changes_no_draw_that_has_room(count, rate, most, seed):
    plain = PoissonSampling(rate).sampler(count, KeyStream.fixed_for_tests(seed))
    sampling = TruncatedPoissonSampling(rate, count, most)
    truncated = sampling.sampler(count, KeyStream.fixed_for_tests(seed))
    for step in range(4):
        one, other = plain.draw(step), truncated.draw(step)
        assert len(other) == min(len(one), most)
        assert len(set(other.tolist())) == len(other)
        if len(one) <= most:
            assert one.tolist() == other.tolist()


def test_room_is_the_expected_size_and_five_standard_deviations_rounded_up():
    sampling = TruncatedPoissonSampling.with_room(0.01, 10_000, multiple_of=32)
    assert sampling == TruncatedPoissonSampling(0.01, 10_000, 160)  # 100 + 5·9.95 = 149.7
    assert TruncatedPoissonSampling.with_room(0.01, 10_000).max_batch_size == 150
    assert TruncatedPoissonSampling.with_room(0.01, 10_000, standard_deviations=1).max_batch_size == 110
    assert TruncatedPoissonSampling.with_room(0.5, 3).max_batch_size == 3  # no more than there are
    assert TruncatedPoissonSampling.with_room(0.5, 3, multiple_of=8).max_batch_size == 8


@pytest.mark.parametrize(
    "arguments", [(0, 10, 5), (1.5, 10, 5), (0.1, 0, 5), (0.1, 2.5, 5), (0.1, 10, 0), (0.1, 10, 2.0), (0.1, 10, True)]
)
def test_values_out_of_range_are_refused(arguments):
    with pytest.raises(InvalidArgumentError):
        TruncatedPoissonSampling(*arguments)


@pytest.mark.parametrize(
    "arguments", [{"multiple_of": 0}, {"multiple_of": 1.5}, {"standard_deviations": 0}, {"standard_deviations": "5"}]
)
def test_room_that_is_none_is_refused(arguments):
    with pytest.raises(InvalidArgumentError):
        TruncatedPoissonSampling.with_room(0.1, 100, **arguments)


def test_a_sampling_for_another_number_of_records_is_refused():
    with pytest.raises(InvalidArgumentError, match="population of 11 records, and there are 10"):
        TruncatedPoissonSampling(0.5, 11, 3).sampler(10, KeyStream.fixed_for_tests(0))


@given(
    st.integers(0, 30),
    st.integers(1, 9),
    st.integers(0, 3),
)
def test_items_of_constant_shapes_do_not_show_how_many_records_were_drawn(drawn, rows, spare):
    """Guarantee: with `constant_rows` every item has `max_rows` rows, and with `items` every logical batch as many
    items, whatever was drawn."""
    items = -(-drawn // rows) + spare
    indices = tuple(range(100, 100 + drawn))
    if items == 0:
        items = 1
    parts = cut(indices, Cutting(rows, True, items), step=2, pass_index=0)
    assert [part.size for part in parts] == [rows] * items
    assert [index for part in parts for index in part.indices] == list(indices)
    assert [part.first for part in parts] == [True] + [False] * (items - 1)
    assert [part.last for part in parts] == [False] * (items - 1) + [True]
    assert all(part.weight == (1.0 if part.indices else 0.0) for part in parts)
    assert [part.size for part in cut(indices, Cutting(rows, True), 2, 0)] == [rows] * max(1, -(-drawn // rows))


def test_records_that_no_item_has_room_for_are_an_error():
    with pytest.raises(InvalidArgumentError, match="2 x 3 records"):
        cut(tuple(range(7)), Cutting(3, True, 2), step=0, pass_index=0)


@pytest.mark.statistical
def test_padding_is_drawn_uniformly_and_independently():
    """χ² over 50 records and 40,000 draws; false alarm 1e-6. The indices repeat, as independent ones do."""
    from hushgrad.randomness import Address

    stream = KeyStream.fixed_for_tests(3)
    drawn = np.concatenate([uniform_indices(50, 200, stream, Address(step)) for step in range(200)])
    counts = np.bincount(drawn, minlength=50)
    assert len(counts) == 50
    assert stats.chi2.sf(((counts - 800) ** 2 / 800).sum(), 49) > 1e-6
    assert len(set(uniform_indices(50, 200, stream, Address(0)).tolist())) < 50 + 1 < 200
    assert len(uniform_indices(3, 0, stream, Address(0))) == 0
