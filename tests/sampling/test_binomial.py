"""The binomial table against exact rational arithmetic."""

from fractions import Fraction
from math import comb

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling.binomial import BinomialTable


def exact(trials, rate, size):
    q = Fraction(rate)
    return comb(trials, size) * q**size * (1 - q) ** (trials - size)


@given(
    st.integers(1, 60),
    st.floats(0, 1, exclude_min=True, exclude_max=True, allow_subnormal=False),
)
@settings(deadline=None, max_examples=60)
def test_every_probability_of_a_small_table_is_exact_to_126_bits(trials, rate):
    """The total variation distance from Binomial(trials, rate) is below 2**-64."""
    table = BinomialTable(trials, rate)
    errors = [abs(table.probability_of(size) - exact(trials, rate, size)) for size in range(trials + 1)]
    assert max(errors) <= Fraction(1, 1 << 126)
    assert sum(errors) / 2 < Fraction(1, 1 << 64)
    assert sum(table.probability_of(size) for size in range(trials + 1)) == 1


@pytest.mark.parametrize("rate", [2**-13, 3 / 256, 0.5, 1 - 2**-10])
def test_total_variation_over_a_thousand_trials(rate):
    """Guarantee: the total variation distance between `size_at(word)` of a uniform word and Binomial(trials, rate) is
    below 2**-64.
    """
    table = BinomialTable(1000, rate)
    # Over one common denominator, because sums of a thousand fractions in lowest terms take seconds.
    q = Fraction(rate)
    scale = q.denominator**1000 << 128
    distance = 0
    for size in range(1001):
        weight = comb(1000, size) * q.numerator**size * (q.denominator - q.numerator) ** (1000 - size)
        distance += abs(int(table.probability_of(size) * (1 << 128)) * q.denominator**1000 - (weight << 128))
    assert distance >> 1 < scale >> 100


@given(st.integers(1, 200), st.floats(0.001, 0.999), st.integers(0, 2**128 - 1))
@settings(deadline=None)
def test_inversion_agrees_with_the_table(trials, rate, word):
    table = BinomialTable(trials, rate)
    size = table.size_at(word)
    below = sum(table.probability_of(s) for s in range(size))
    assert below <= Fraction(word, 1 << 128) < below + table.probability_of(size)


@pytest.mark.parametrize(("trials", "rate"), [(10**7, 1e-4), (10**7, 0.1), (10**9, 1e-9), (12_345, 0.5)])
def test_large_tables_agree_with_scipy(trials, rate):
    table = BinomialTable(trials, rate)
    mean = int(trials * rate)
    spread = int((trials * rate * (1 - rate)) ** 0.5)
    for size in {0, mean, mean + 1, max(0, mean - 3 * spread), mean + 3 * spread, mean + 8 * spread}:
        expected = stats.binom.pmf(size, trials, rate)
        assert float(table.probability_of(size)) == pytest.approx(expected, rel=1e-6, abs=1e-35)
    assert table.size_at(0) <= mean <= table.size_at(2**128 - 1) <= trials


def test_all_words_are_served_at_the_ends():
    table = BinomialTable(3, 0.5)
    assert table.size_at(0) == 0
    assert table.size_at(2**128 - 1) == 3
    assert BinomialTable(5, 5e-324).size_at(2**128 - 1) == 0


@pytest.mark.parametrize(("trials", "rate"), [(0, 0.5), (1 << 40, 0.5), (10, 0.0), (10, 1.5), (1.5, 0.5)])
def test_arguments_out_of_range_are_refused(trials, rate):
    with pytest.raises(InvalidArgumentError):
        BinomialTable(trials, rate)
