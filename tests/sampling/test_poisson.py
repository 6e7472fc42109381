"""Poisson draws: every inclusion, pair and size has its probability."""

import random
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.poisson import PoissonSampling, uniform_subset


def sampler(count, rate, seed=1):
    return PoissonSampling(rate).sampler(count, KeyStream.fixed_for_tests(seed))


def inclusions(count, rate, draws, seed=1):
    """Return [draws, count] of 0/1."""
    drawn = sampler(count, rate, seed)
    table = np.zeros((draws, count), dtype=np.int64)
    for step in range(draws):
        table[step, drawn.draw(step)] = 1
    return table


@given(st.integers(1, 500), st.floats(1e-6, 1), st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=50)
def test_a_draw_is_an_ascending_set_of_indices(count, rate, step):
    indices = sampler(count, rate).draw(step)
    assert indices.dtype == np.int64
    assert all(a < b for a, b in pairwise(indices.tolist()))
    assert len(indices) == 0 or (indices[0] >= 0 and indices[-1] < count)


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.05, 0.3, 0.8])
def test_every_record_is_drawn_with_its_probability(rate):
    """χ² over 40 records and 8,000 draws; false alarm 1e-6 each rate."""
    draws = 8_000
    counts = inclusions(40, rate, draws).sum(0)
    chi2 = ((counts - draws * rate) ** 2).sum() / (draws * rate * (1 - rate))
    assert 1e-6 / 2 < stats.chi2.sf(chi2, 40) < 1 - 1e-6 / 2


@pytest.mark.statistical
@pytest.mark.parametrize("rate", [0.1, 0.6])
def test_records_are_drawn_independently_of_one_another(rate):
    """Covariances of all pairs of 30 records over 8,000 draws, as a χ²; false alarm about 1e-6 each rate."""
    draws = 8_000
    centred = inclusions(30, rate, draws, seed=2) - rate
    covariances = (centred.T @ centred)[np.triu_indices(30, 1)] / (np.sqrt(draws) * rate * (1 - rate))
    statistic = (covariances**2).sum()
    pairs = len(covariances)
    # The sum of weakly dependent squares: compared with the normal of its mean and variance, with room.
    assert abs(statistic - pairs) < 6 * np.sqrt(2 * pairs) * 1.2


@pytest.mark.statistical
def test_draws_of_neighbouring_steps_are_independent():
    """Correlation of the inclusions of step t and t + 1; false alarm 6e-7."""
    table = inclusions(50, 0.2, 4_000, seed=3) - 0.2
    product = (table[:-1] * table[1:]).sum() / (0.16 * np.sqrt(table[1:].size))
    assert abs(product) < 5


@pytest.mark.statistical
@pytest.mark.parametrize(("count", "rate"), [(25, 0.1), (1000, 0.003), (12, 0.7)])
def test_sizes_follow_the_binomial_distribution(count, rate):
    """χ² of 6,000 sizes, empty draws included; false alarm 1e-6 each case."""
    draws = 6_000
    sizes = inclusions(count, rate, draws, seed=4).sum(1)
    expected = draws * stats.binom.pmf(np.arange(count + 1), count, rate)
    frequent = expected >= 10
    observed = np.bincount(sizes, minlength=count + 1)
    o = np.append(observed[frequent], observed[~frequent].sum())
    e = np.append(expected[frequent], expected[~frequent].sum())
    assert stats.chi2.sf(((o - e) ** 2 / np.maximum(e, 1)).sum(), len(o) - 1) > 1e-6
    assert (sizes == 0).any() == (expected[0] > 1)


@pytest.mark.statistical
@pytest.mark.parametrize("size", [1, 2, 4])
def test_every_subset_of_a_size_is_equally_likely(size):
    """χ² over all subsets of 6 elements, 10,000 draws; false alarm 1e-6 each size.

    Guarantee: for uniform random bits, the total variation distance between a draw and exact Poisson sampling is
    below 2**-64.
    """
    stream = KeyStream.fixed_for_tests(6)
    counts: dict[tuple[int, ...], int] = {}
    for step in range(10_000):
        subset = tuple(uniform_subset(6, size, stream, Address(step)).tolist())
        counts[subset] = counts.get(subset, 0) + 1
    subsets = len(counts)
    assert subsets == {1: 6, 2: 15, 4: 15}[size]
    assert stats.chisquare(list(counts.values())).pvalue > 1e-6


class CraftedStream:
    """Gives the words a test chose, one list for each read."""

    def __init__(self, *reads):
        self.reads = list(reads)

    def fill(self, buffer, address, offset=0):
        words = self.reads.pop(0)
        assert len(words) == len(buffer)
        buffer[:] = words


def test_words_of_the_incomplete_last_run_are_rejected_and_repetitions_drawn_again():
    top = (1 << 64) - 1
    # 2**64 = 6 (mod 10): the six largest words would favour 0 to 5.
    stream = CraftedStream([top, top - 5, top - 6, 12], [2, 4], [5])
    assert uniform_subset(10, 4, stream, Address(0)).tolist() == [2, 4, 5, 9]
    assert not stream.reads


def test_full_sampling_draws_everything():
    assert sampler(10, 1.0).draw(3).tolist() == list(range(10))


def test_a_draw_depends_on_key_and_step_only():
    """The draws depend on the stream alone, never on the seeds of torch, NumPy or Python."""
    first = [sampler(1000, 0.1).draw(step).tolist() for step in range(3)]
    torch.manual_seed(1), np.random.seed(1), random.seed(1)
    assert [sampler(1000, 0.1).draw(step).tolist() for step in range(3)] == first
    assert first[0] != first[1] != first[2]
    assert sampler(1000, 0.1, seed=2).draw(0).tolist() != first[0]


def test_large_populations_are_drawn_without_reading_them():
    indices = sampler(10**12 // 10**3, 1e-7).draw(0)
    assert 20 < len(indices) < 300
