"""The noise: its distribution, its tail, its independence of everything but key and address."""

import math
import random

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.errors import InvalidArgumentError
from hushgrad.noise import noisy_update, standard_normal
from hushgrad.noise.gaussian import BLOCK_VALUES, HIGH, LOW, refined_radii
from hushgrad.randomness import Address, KeyStream

WIDE = (torch.float32, torch.float64)


ORIGIN = Address(0)


def draw(count, dtype=torch.float32, address=ORIGIN, seed=11):
    return standard_normal((count,), dtype=dtype, device="cpu", stream=KeyStream.fixed_for_tests(seed), address=address)


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", WIDE)
def test_moments_are_those_of_the_standard_normal(dtype):
    """Mean, variance, skewness and kurtosis of 4e6 values within 5 standard errors each; false alarm below 5e-6."""
    n = 4_000_000
    z = draw(n, dtype).double()
    assert abs(z.mean()) < 5 * math.sqrt(1 / n)
    assert abs((z**2).mean() - 1) < 5 * math.sqrt(2 / n)
    assert abs((z**3).mean()) < 5 * math.sqrt(15 / n)
    assert abs((z**4).mean() - 3) < 5 * math.sqrt(96 / n)


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", WIDE)
def test_values_follow_the_normal_distribution_function(dtype):
    """Kolmogorov-Smirnov on 1e6 values; false alarm 1e-6."""
    assert stats.kstest(draw(1_000_000, dtype, seed=12).numpy(), "norm").pvalue > 1e-6


@pytest.mark.statistical
def test_the_tails_hold_as_many_values_as_they_should():
    """Poisson counts beyond ±4, ±4.5 and ±5 of 16e6 values, each side; false alarm 6e-6."""
    stream = KeyStream.fixed_for_tests(5)
    beyond = {(side, bound): 0 for side in (-1, 1) for bound in (4.0, 4.5, 5.0)}
    for step in range(8):
        z = standard_normal((2_000_000,), dtype=torch.float32, device="cpu", stream=stream, address=Address(step))
        for side, bound in beyond:
            beyond[side, bound] += int((side * z > bound).sum())
    for (_, bound), count in beyond.items():
        expected = 16e6 * stats.norm.sf(bound)
        assert stats.poisson.cdf(count, expected) > 5e-7
        assert stats.poisson.sf(count - 1, expected) > 5e-7


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("lag", [1, 2, BLOCK_VALUES // 2, BLOCK_VALUES])
def test_values_and_their_squares_are_uncorrelated_at_a_lag(dtype, lag):
    """Two correlations within 5 standard errors; false alarm 1.2e-6 each case."""
    z = draw(1_000_000, dtype, seed=13).double()
    one, other = z[:-lag], z[lag:]
    assert abs((one * other).mean()) < 5 / math.sqrt(len(one))
    assert abs(((one**2 - 1) * (other**2 - 1)).mean()) < 5 * 2 / math.sqrt(len(one))


@pytest.mark.statistical
@pytest.mark.parametrize("other", [Address(1), Address(0, 1), Address(0, 0, 1)])
def test_different_addresses_give_uncorrelated_noise(other):
    """Correlation of 1e6 values within 5 standard errors; false alarm 6e-7 each case."""
    one, two = draw(1_000_000).double(), draw(1_000_000, address=other).double()
    assert abs((one * two).mean()) < 5 / 1000


@pytest.mark.parametrize("dtype", WIDE)
def test_values_depend_on_key_address_count_and_dtype_only(dtype):
    """The values depend on the key, the address, the number of values and the dtype only."""
    threads = torch.get_num_threads()
    try:
        draws = []
        for count in (1, 2, 4):
            torch.set_num_threads(count)
            draws.append(draw(3 * BLOCK_VALUES + 12_345, dtype))
    finally:
        torch.set_num_threads(threads)
    assert torch.equal(draws[0], draws[1])
    assert torch.equal(draws[0], draws[2])


def test_blocks_do_not_repeat_one_another():
    z = draw(4 * BLOCK_VALUES).view(4, BLOCK_VALUES)
    assert len({bytes(block[:8].numpy()) for block in z}) == 4
    assert len(draw(1 << 16, torch.float64).unique()) == 1 << 16


@given(st.lists(st.integers(0, 7), max_size=4), st.sampled_from(WIDE))
@settings(deadline=None)
def test_the_result_has_the_shape_and_dtype_asked_for(shape, dtype):
    z = standard_normal(shape, dtype=dtype, device="cpu", stream=KeyStream.fixed_for_tests(0), address=Address(0))
    assert z.shape == torch.Size(shape)
    assert z.dtype == dtype
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("size", [1, 2, 3, BLOCK_VALUES - 1, BLOCK_VALUES, BLOCK_VALUES + 1])
def test_odd_and_whole_numbers_of_blocks_are_filled_to_the_last_value(size):
    z = draw(size)
    assert z.shape == (size,)
    assert (z != 0).all()


def test_the_global_generators_are_neither_read_nor_advanced():
    before = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    first = draw(1000)
    after = torch.get_rng_state(), np.random.get_state()[1], random.getstate()
    assert torch.equal(before[0], after[0])
    assert (before[1] == after[1]).all()
    assert before[2] == after[2]
    torch.manual_seed(5), np.random.seed(5), random.seed(5)
    assert torch.equal(first, draw(1000))


def test_the_same_seeds_give_unrelated_noise():
    """Two runs with the same seeds; equal by chance with probability below 2**-1000."""
    draws = []
    for _ in range(2):
        torch.manual_seed(42), np.random.seed(42), random.seed(42)
        stream = KeyStream.from_operating_system()
        draws.append(standard_normal((1000,), dtype=torch.float32, device="cpu", stream=stream, address=Address(0)))
    assert not torch.isclose(draws[0], draws[1], rtol=0, atol=1e-7).all()


class CraftedStream:
    """Gives the words a test chose: `values` at the start of a draw, `further` where refinements are read."""

    def __init__(self, values, further):
        self.values, self.further = values, further

    def fill(self, buffer, address, offset=0):
        buffer[:] = self.values if offset < 1 << 60 else self.further


def test_values_beyond_8_are_reached():
    """Values beyond |z| = 8 occur with their true probability; the largest possible |z| is 9.4."""
    stream = CraftedStream(np.array([0, 0], dtype=np.int32), np.array([0], dtype=np.uint32))
    z = standard_normal((2,), dtype=torch.float32, device="cpu", stream=stream, address=Address(0))
    assert 9.4 < float(z[0]) < 9.5
    radius = refined_radii(np.zeros(3, dtype=np.int32), np.array([1 << 14, 1 << 15, 1 << 16], dtype=np.uint32))
    u = (np.array([1 << 14, 1 << 15, 1 << 16]) + 0.5) / 2.0**63
    np.testing.assert_allclose(np.exp(-(radius**2) / 2), u, rtol=1e-12)
    assert (radius > 8).all()


@pytest.mark.parametrize(("dtype", "word_type", "bits"), [(torch.float32, np.int32, 32), (torch.float64, np.int64, 64)])
def test_values_are_radius_times_cosine_and_sine_of_the_words(dtype, word_type, bits):
    """The definition, in float64: u = (word mod 2**(bits-1) + 1/2) / 2**(bits-1), θ = π · word / 2**(bits-1)."""
    half = 2.0 ** (bits - 1)
    generator = np.random.default_rng(0)
    words = generator.integers(-int(half), int(half), 2000).astype(word_type)
    words[1000:1005] = [-int(half), -int(half) // 2, 0, int(half) // 2, int(half) - 1]
    stream = CraftedStream(words, np.array([], dtype=np.uint32))
    z = standard_normal((2000,), dtype=dtype, device="cpu", stream=stream, address=Address(0)).double().numpy()
    u = ((words[:1000].astype(np.float64) % half) + 0.5) / half
    radius, angle = np.sqrt(-2 * np.log(u)), math.pi * words[1000:].astype(np.float64) / half
    tolerance = 2e-5 if bits == 32 else 1e-12
    np.testing.assert_allclose(z[:1000], radius * np.cos(angle), atol=tolerance, rtol=0)
    np.testing.assert_allclose(z[1000:], radius * np.sin(angle), atol=tolerance, rtol=0)


@pytest.mark.statistical
def test_directions_of_pairs_are_uniform():
    """χ² of 2e6 angles over 4,096 sectors; false alarm 1e-6."""
    z = draw(16 * BLOCK_VALUES, seed=14).view(16, 2, BLOCK_VALUES // 2).double()
    angles = torch.atan2(z[:, 1], z[:, 0]).flatten()
    counts = torch.histc(angles, 4096, -math.pi, math.pi)
    assert stats.chisquare(counts.numpy()).pvalue > 1e-6


def test_float64_reaches_beyond_8_too():
    stream = CraftedStream(np.array([1 << 10, 0], dtype=np.int64), None)
    z = standard_normal((2,), dtype=torch.float64, device="cpu", stream=stream, address=Address(0))
    assert 8 < float(z[0]) < 9.5


def test_extreme_words_give_finite_values():
    for words in ([0, 0], [-1, -1], [-(2**31), -(2**31)], [2**31 - 1, 2**31 - 1]):
        for further in (0, 2**32 - 1):
            stream = CraftedStream(np.array(words, dtype=np.int32), np.array([further], dtype=np.uint32))
            z = standard_normal((2,), dtype=torch.float32, device="cpu", stream=stream, address=Address(0))
            assert torch.isfinite(z).all()
            assert z.norm() > 0
    for words in ([0, 0], [-1, -1], [-(2**63), 5], [2**63 - 1, 2**63 - 1]):
        stream = CraftedStream(np.array(words, dtype=np.int64), None)
        assert torch.isfinite(
            standard_normal((2,), dtype=torch.float64, device="cpu", stream=stream, address=Address(0))
        ).all()


@given(st.integers(0, 2**31 - 1), st.integers(0, 2**32 - 1))
@settings(deadline=None)
def test_refined_radii_agree_with_the_definition(word, further):
    import decimal

    with decimal.localcontext() as context:
        context.prec = 60
        u = (decimal.Decimal(word * 2**32 + further) + decimal.Decimal("0.5")) / decimal.Decimal(2**63)
        expected = float((-2 * u.ln()).sqrt())
    result = float(refined_radii(np.array([word], dtype=np.int32), np.array([further], dtype=np.uint32))[0])
    assert result == pytest.approx(expected, rel=1e-12)


@given(st.sampled_from([LOW - 1, LOW, LOW + 1, HIGH - 1, HIGH, 1 << 30, 12_345_678]))
@settings(deadline=None)
def test_the_radius_is_continuous_where_refinement_begins(word):
    stream = CraftedStream(np.array([word, 0], dtype=np.int32), np.array([1 << 31], dtype=np.uint32))
    z = standard_normal((2,), dtype=torch.float32, device="cpu", stream=stream, address=Address(0))
    expected = float(refined_radii(np.array([word], dtype=np.int32), np.array([1 << 31], dtype=np.uint32))[0])
    assert float(z[0]) == pytest.approx(expected, rel=2e-3)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.int64])
def test_narrow_dtypes_are_refused(dtype):
    with pytest.raises(InvalidArgumentError, match="float32 or float64"):
        draw(4, dtype)
    with pytest.raises(InvalidArgumentError, match="float32 or float64"):
        noisy_update(
            torch.zeros(4, dtype=dtype),
            noise_std=1.0,
            divisor=1.0,
            stream=KeyStream.fixed_for_tests(0),
            address=Address(0),
        )


@pytest.mark.statistical
@pytest.mark.parametrize("dtype", WIDE)
@pytest.mark.parametrize("divisor", [1.0, 256.0])
def test_the_noise_of_an_update_has_the_std_it_was_asked_for(dtype, divisor):
    """The noise of the result has standard deviation noise_std / divisor.

    Within 0.5% over 2e6 values, which is 10 standard errors; false alarm below 1e-20.
    """
    total = torch.linspace(-1, 1, 2_000_000, dtype=dtype)
    stream = KeyStream.fixed_for_tests(2)
    update = noisy_update(total, noise_std=5.5, divisor=divisor, stream=stream, address=Address(4))
    noise = update - total / divisor
    assert float(noise.std()) == pytest.approx(5.5 / divisor, rel=0.005)
    assert abs(float(noise.mean())) < 6 * 5.5 / divisor / math.sqrt(2e6)


@pytest.mark.parametrize("dtype", WIDE)
def test_an_update_is_sum_then_noise_then_division(dtype):
    """Equal to the formula up to rounding, for any layout; the total is not modified and the result is new."""
    stream = KeyStream.fixed_for_tests(2)
    total = torch.randn(7, 5, 3, dtype=dtype).permute(2, 0, 1)
    kept = total.clone()
    update = noisy_update(total, noise_std=3.0, divisor=7.0, stream=stream, address=Address(4, 2))
    z = standard_normal(total.shape, dtype=dtype, device="cpu", stream=stream, address=Address(4, 2))
    torch.testing.assert_close(update, (total + 3.0 * z) / 7.0)
    assert torch.equal(total, kept)
    assert update.dtype == dtype
    assert update.data_ptr() != total.data_ptr()


def test_no_noise_adds_nothing_and_draws_nothing():
    total = torch.randn(10)
    update = noisy_update(total, noise_std=0.0, divisor=1.0, stream=CraftedStream(None, None), address=Address(0))
    assert torch.equal(update, total)
    assert update.data_ptr() != total.data_ptr()


def test_an_update_carries_no_graph():
    total = torch.randn(3, requires_grad=True)
    for std in (0.0, 1.0):
        update = noisy_update(
            total, noise_std=std, divisor=2.0, stream=KeyStream.fixed_for_tests(0), address=Address(0)
        )
        assert not update.requires_grad


@pytest.mark.parametrize(
    "arguments",
    [
        {"noise_std": -1.0, "divisor": 1.0},
        {"noise_std": math.nan, "divisor": 1.0},
        {"noise_std": math.inf, "divisor": 1.0},
        {"noise_std": True, "divisor": 1.0},
        {"noise_std": 1.0, "divisor": 0.0},
        {"noise_std": 1.0, "divisor": math.nan},
    ],
)
def test_bad_scales_are_refused(arguments):
    with pytest.raises(InvalidArgumentError):
        noisy_update(torch.zeros(2), stream=KeyStream.fixed_for_tests(0), address=Address(0), **arguments)


def test_the_default_dtype_changes_nothing():
    expected = draw(100)
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(draw(100), expected)
    finally:
        torch.set_default_dtype(torch.float32)
