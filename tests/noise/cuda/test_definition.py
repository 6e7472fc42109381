"""The definition of noise on a GPU: its distribution, its tail, its independence of all but key, address and place."""

import math

import numpy as np
import pytest
import torch
from scipy import stats

from hushgrad.errors import InvalidArgumentError
from hushgrad.noise.cuda import definition
from hushgrad.noise.cuda.chacha import CipherKey, chacha20, signed
from hushgrad.noise.cuda.definition import LANES, TILE, noisy_update, standard_normal, tables
from hushgrad.noise.strips import PICKS, density, pick_table, strips
from hushgrad.randomness import Address, KeyStream

ORIGIN = Address(0)
CPU = torch.device("cpu")


def draw(count, address=ORIGIN, seed=11):
    return standard_normal(count, device="cpu", key=CipherKey.of(KeyStream.fixed_for_tests(seed)), address=address)


@pytest.fixture(scope="module")
def many():
    """Four million values; the tests below look at different properties of them."""
    return draw(4_000_000).double()


@pytest.mark.statistical
def test_moments_are_those_of_the_standard_normal(many):
    """Mean, variance, skewness and kurtosis of 4e6 values within 5 standard errors each; false alarm below 5e-6."""
    n = len(many)
    assert abs(many.mean()) < 5 * math.sqrt(1 / n)
    assert abs((many**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((many**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((many**4).mean() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.statistical
def test_values_follow_the_normal_distribution_function(many):
    """Kolmogorov-Smirnov on 1e6 values; false alarm 1e-6."""
    assert stats.kstest(many[:1_000_000].numpy(), "norm").pvalue > 1e-6


@pytest.mark.statistical
def test_the_tails_hold_as_many_values_as_they_should(many):
    """Poisson counts beyond ±3.75, ±4 and ±4.5 of 4e6 values, each side; false alarm 6e-6."""
    for bound in (3.75, 4.0, 4.5):
        for side in (-1, 1):
            count, expected = int((side * many > bound).sum()), len(many) * stats.norm.sf(bound)
            assert stats.poisson.cdf(count, expected) > 5e-7
            assert stats.poisson.sf(count - 1, expected) > 5e-7


@pytest.mark.statistical
@pytest.mark.parametrize("lag", [1, 2, LANES, TILE - LANES + 1, TILE])
def test_values_and_their_squares_are_uncorrelated_at_a_lag(many, lag):
    """Two correlations of 4e6 values within 5 standard errors; false alarm 1.2e-6 each case."""
    one, other = many[:-lag], many[lag:]
    assert abs((one * other).mean()) < 5 / math.sqrt(len(one))
    assert abs(((one**2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / math.sqrt(len(one))


@pytest.mark.statistical
@pytest.mark.parametrize("other", [Address(1), Address(0, 1), Address(0, 0, 1), Address(2**32 - 1, 2**20 - 1)])
def test_different_addresses_give_uncorrelated_noise(other):
    """Correlation of 1e6 values within 5 standard errors; false alarm 6e-7 each case."""
    one, two = draw(1_000_000).double(), draw(1_000_000, address=other).double()
    assert abs((one * two).mean()) < 5 / 1000


@pytest.mark.statistical
def test_the_remainder_is_what_the_strips_leave_of_the_normal_distribution():
    """The places that go to the remainder, 10**5 of them: Kolmogorov-Smirnov; false alarm 1e-6."""
    table, key = tables(CPU), CipherKey.of(KeyStream.fixed_for_tests(6))
    found = definition._remainder(key, (3, 4), torch.arange(100_000) * 2**17, table).numpy()
    right = strips()
    assert 0.5 - 5e-3 * 2 < (found > 0).mean() < 0.5 + 5e-3 * 2  # 6 standard errors
    # Areas of the slivers at each edge, by the normal distribution function itself.
    below = np.concatenate(
        [[0], np.cumsum(np.diff(stats.norm.cdf(right.edges)) - np.diff(right.edges) * right.heights)]
    )
    total = below[-1] + stats.norm.sf(right.edges[-1])

    def distribution(x):
        inside = np.interp(x, right.edges, below)
        return np.where(x <= right.edges[-1], inside, total - stats.norm.sf(x)) / total

    assert stats.kstest(np.abs(found), distribution).pvalue > 1e-6
    assert (np.abs(found) > right.edges[-1]).mean() == pytest.approx(stats.norm.sf(right.edges[-1]) / total, abs=0.01)


def test_the_tail_is_exact_and_reaches_beyond_eight():
    """Guarantee: values beyond `abs(z)` = 8 occur with their true probability; the largest possible `abs(z)` is 10.2.

    A tail candidate with a given place in (0, 1) is the value of the curve φ(r)/r · x·exp(...) at that place, and is
    accepted with probability r / x, which together is φ(x) dx.
    """
    table = tables(CPU)
    edge = float(table.edges[-1])
    u = torch.tensor([2.0**-64, 1e-12, 1e-9, 1e-3, 0.5], dtype=torch.float64)
    beyond = torch.sqrt(edge * edge - 2 * torch.log(u))
    assert beyond[1] > 8.3
    # The curve's share beyond x is u, so its density there is u · x, and a part r / x of that is kept.
    density_of_tail = float(table.boxes[-1] - table.boxes[-2]) * u * beyond * (edge / beyond)
    assert np.allclose(density_of_tail.numpy(), density(beyond.numpy()), rtol=1e-9)
    words = torch.zeros(16, 1, dtype=torch.int32)  # the smallest place that words can give
    words[0] = words[1] = -1  # the last box
    value, is_accepted = definition._candidates(words, table)
    assert bool(is_accepted)
    assert 8 < abs(float(value)) < 10.2


def test_a_value_is_that_of_its_word_by_the_strips_of_the_cpu():
    """The documented place of a value's word, and middle + slope · word with two roundings, one value at a time."""
    key, address, table = CipherKey.of(KeyStream.fixed_for_tests(12)), Address(7, 3, 2), pick_table(32)
    values = draw(3 * TILE, address, seed=12).numpy()
    packed = address.packed()
    nonce = (0, signed(packed & 0xFFFFFFFF), signed(packed >> 32))
    for i in (0, 1, 31, 32, 511, 512, 513, 1000, 1535):
        counter = torch.tensor([32 * (i // 512) + i % 32], dtype=torch.int32)
        word = chacha20(key, counter, nonce)[(i % 512) // 32].numpy()[0]
        middle, slope = table[word & (PICKS - 1)]
        assert word & (PICKS - 1) < 2 * strips().count
        assert values[i] == np.float32(middle + np.float32(slope * np.float32(word)))


def test_values_depend_on_key_address_and_place_only(monkeypatch):
    """Guarantee: the values depend on the key, the address and the place in the draw only."""
    whole = draw(5 * TILE + 123)
    assert torch.equal(whole[:1000], draw(1000))
    monkeypatch.setattr(definition, "CHUNK_TILES", 2)
    assert torch.equal(whole, draw(5 * TILE + 123))
    assert not torch.equal(whole, draw(5 * TILE + 123, seed=12))
    assert not torch.equal(whole, draw(5 * TILE + 123, Address(1)))


def test_places_beyond_two_to_the_32_have_blocks_of_their_own():
    """Words and candidates far out in a large draw are not those at its begin."""
    key, table = CipherKey.of(KeyStream.fixed_for_tests(6)), tables(CPU)
    near, far = (definition._values(key, ORIGIN, start, 2000, CPU) for start in (0, 1 << 35))
    assert len(set(near.tolist()) & set(far.tolist())) < 10
    places = torch.tensor([5, 5 + (1 << 32), 5 + (3 << 32)])
    assert len(definition._remainder(key, (0, 0), places, table).unique()) == 3


@pytest.mark.parametrize("shape", [(), (0,), (1,), (3, 5), (2, 300, 7)])
def test_an_update_is_the_sum_then_noise_then_the_division(shape):
    """Guarantee: the noise of the result has standard deviation noise_std / divisor."""
    total, count = torch.randn(shape), math.prod(shape)
    key = CipherKey.of(KeyStream.fixed_for_tests(2))
    update = noisy_update(total, noise_std=3.0, divisor=7.0, key=key, address=Address(4))
    z = standard_normal(count, device="cpu", key=key, address=Address(4)).view(shape)
    assert update.shape == total.shape
    assert torch.equal(update, (total + 3.0 * z) / torch.tensor(7.0))


def test_an_update_may_overwrite_its_total_and_else_leaves_it_alone():
    total = torch.randn(1000).view(10, 100).t()
    kept = total.clone()
    key = CipherKey.of(KeyStream.fixed_for_tests(2))
    fresh = noisy_update(total, noise_std=1.0, divisor=2.0, key=key, address=ORIGIN)
    assert torch.equal(total, kept)
    assert fresh.is_contiguous()
    written = total.contiguous()
    result = noisy_update(written, noise_std=1.0, divisor=2.0, key=key, address=ORIGIN, overwrite=True)
    assert result.data_ptr() == written.data_ptr()
    assert torch.equal(result, fresh)
    with pytest.raises(InvalidArgumentError, match="contiguous"):
        noisy_update(total, noise_std=1.0, divisor=2.0, key=key, address=ORIGIN, overwrite=True)


def test_totals_that_are_not_float32_and_bad_numbers_are_refused():
    key = CipherKey.of(KeyStream.fixed_for_tests(2))
    with pytest.raises(InvalidArgumentError, match="float32"):
        noisy_update(torch.zeros(3).double(), noise_std=1.0, divisor=2.0, key=key, address=ORIGIN)
    for std, divisor in ((-1.0, 1.0), (math.nan, 1.0), (1.0, 0.0)):
        with pytest.raises(InvalidArgumentError):
            noisy_update(torch.zeros(3), noise_std=std, divisor=divisor, key=key, address=ORIGIN)
