"""Batches of a fixed size, without replacement. Keys are fixed."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.accounting import FixedSizeSampled
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling import FixedSizeSampling


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 30), st.data(), st.integers(0, 2**30))
def test_every_draw_has_that_many_different_records(population: int, data: st.DataObject, key: int) -> None:
    size = data.draw(st.integers(1, population))
    sampler = FixedSizeSampling(size, population).sampler(population, KeyStream.fixed_for_tests(key))
    for draw in sampler.one_pass(3, 0):
        assert len(set(draw)) == len(draw) == size
        assert set(draw) <= set(range(population))


@pytest.mark.parametrize("size", [2, 4])
def test_all_subsets_are_equally_likely(size: int) -> None:
    """Guarantee: all subsets of that size are equally likely. False alarm 1e-6 each (chi-square of 6,000 draws)."""
    sampler = FixedSizeSampling(size, 5).sampler(5, KeyStream.fixed_for_tests(8))
    counts = dict.fromkeys(combinations(range(5), size), 0)
    for draw in sampler.one_pass(6000, 0):
        counts[draw] += 1
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6


def test_steps_are_independent() -> None:
    """Guarantee: independently in every step. False alarm 1e-6: the overlap of two draws of 20 of 100 has mean 4."""
    sampler = FixedSizeSampling(20, 100).sampler(100, KeyStream.fixed_for_tests(9))
    draws = [set(draw) for draw in sampler.one_pass(2000, 0)]
    common = sum(len(one & other) for one, other in zip(draws[::2], draws[1::2], strict=True))
    deviation = (1000 * 20 * 0.2 * 0.8 * 80 / 99) ** 0.5
    assert abs(common - 4000) < 4.9 * deviation


def test_the_scheme_is_charged_under_replace_one_and_for_its_own_population() -> None:
    scheme = FixedSizeSampling(10, 100)
    assert scheme.event(1.5) == FixedSizeSampled(10, 100, 1.5)
    assert scheme.adjacency == "replace-one"
    assert scheme.largest_batch == scheme.expected_batch_size(100) == 10
    assert scheme.inclusion_probability(100) == 0.1
    with pytest.raises(InvalidArgumentError, match="population of 100"):
        scheme.sampler(99, KeyStream.fixed_for_tests(1))
    with pytest.raises(InvalidArgumentError, match="at most population"):
        FixedSizeSampling(11, 10)
