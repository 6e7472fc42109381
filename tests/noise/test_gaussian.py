"""The noise: its distribution, its tail, its independence of everything but key and address."""

import itertools
import math
import random
from collections import deque
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from hushgrad.errors import InvalidArgumentError
from hushgrad.noise import gaussian, noisy_update, standard_normal
from hushgrad.noise.strips import PICKS, pick_table, remainder, strips
from hushgrad.randomness import Address, KeyStream

WIDE = (torch.float32, torch.float64)
CHUNK_VALUES = gaussian.backend().size


ORIGIN = Address(0)


@pytest.fixture(autouse=True)
def threads_are_cheap(monkeypatch):
    """Draws as small as those here go to all threads."""
    monkeypatch.setattr(gaussian.backend(), "worth_a_thread", 1 << 15)


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
@pytest.mark.parametrize("lag", [1, 2, CHUNK_VALUES - 1, CHUNK_VALUES])
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
def test_values_depend_on_key_address_count_and_dtype_only(dtype, monkeypatch):
    """Guarantee: the values depend on the key, the address, the number of values and the dtype only."""
    draws = []
    for count in (1, 2, 5):
        torch.set_num_threads(count)
        draws.append(draw(7 * CHUNK_VALUES + 12_345, dtype))
    monkeypatch.setattr(gaussian.backend(), "size", 10_000)
    monkeypatch.setattr(gaussian, "_idle", {word: deque() for word in gaussian._idle})
    draws.append(draw(7 * CHUNK_VALUES + 12_345, dtype))
    for other in draws[1:]:
        assert torch.equal(draws[0], other)


@pytest.mark.parametrize("threads", [1, 3])
def test_an_update_does_not_depend_on_threads_or_memory(threads):
    total = torch.randn(5 * CHUNK_VALUES + 7)
    results = []
    for count, overwrite in ((1, False), (threads, False), (threads, True)):
        torch.set_num_threads(count)
        stream = KeyStream.fixed_for_tests(2)
        results.append(
            noisy_update(
                total.clone(), noise_std=2.0, divisor=7.0, stream=stream, address=Address(1), overwrite=overwrite
            )
        )
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


def test_a_failure_in_any_thread_is_raised():
    class Failing:
        def fill(self, buffer, address, offset=0):
            if offset > 0:
                raise MemoryError
            buffer[:] = 0

    torch.set_num_threads(2)
    with pytest.raises(MemoryError):
        standard_normal((4 * CHUNK_VALUES,), dtype=torch.float32, device="cpu", stream=Failing(), address=Address(0))


def test_draws_at_the_same_time_do_not_disturb_each_other():
    """Eight draws in four threads, each with threads of its own, give what they give one after the other."""
    torch.set_num_threads(2)
    stream = KeyStream.fixed_for_tests(3)

    def one(step):
        shape = (CHUNK_VALUES + 1000 * step,)
        return standard_normal(shape, dtype=torch.float32, device="cpu", stream=stream, address=Address(step))

    expected = [one(step) for step in range(8)]
    with ThreadPoolExecutor(4) as pool:
        for z, wanted in zip(pool.map(one, range(8)), expected, strict=True):
            assert torch.equal(z, wanted)


def test_chunks_do_not_repeat_one_another():
    z = draw(4 * CHUNK_VALUES).view(4, CHUNK_VALUES)
    assert len({bytes(chunk[:8].numpy()) for chunk in z}) == 4
    assert len(draw(1 << 16, torch.float64).unique()) == 1 << 16


@given(st.lists(st.integers(0, 7), max_size=4), st.sampled_from(WIDE))
@settings(deadline=None)
def test_the_result_has_the_shape_and_dtype_asked_for(shape, dtype):
    z = standard_normal(shape, dtype=dtype, device="cpu", stream=KeyStream.fixed_for_tests(0), address=Address(0))
    assert z.shape == torch.Size(shape)
    assert z.dtype == dtype
    assert torch.isfinite(z).all()


@pytest.mark.parametrize("size", [1, 2, 3, CHUNK_VALUES - 1, CHUNK_VALUES, CHUNK_VALUES + 1])
def test_odd_and_whole_numbers_of_chunks_are_filled_to_the_last_value(size):
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
    """Gives the words a test chose: `words` at the start of a draw, `candidates` where the remainder's are read."""

    def __init__(self, words, candidates=None):
        self.words, self.candidates = words, candidates

    def fill(self, buffer, address, offset=0):
        if offset >= 1 << 60:
            buffer[:] = self.candidates
        else:
            start = offset // self.words.itemsize
            buffer[:] = self.words[start : start + len(buffer)]


REMAINDER = PICKS - 1  # a word that picks the remainder
FAR_TAIL = np.array([(1 << 64) - 2, 0, 0], dtype=np.uint64)  # a candidate: the right tail, its outermost point


@pytest.mark.parametrize(("dtype", "word_type"), [(torch.float32, np.int32), (torch.float64, np.int64)])
def test_values_beyond_8_are_reached(dtype, word_type):
    """Guarantee: values beyond `abs(z)` = 8 occur with their true probability.

    Guarantee: the largest possible `abs(z)` is 10.1.
    """
    stream = CraftedStream(np.array([REMAINDER, 0], dtype=word_type), FAR_TAIL)
    z = standard_normal((2,), dtype=dtype, device="cpu", stream=stream, address=Address(0))
    assert 10.1 < float(z[0]) < 10.11
    assert 0 <= float(z[1]) < 1e-4
    for sign, first in ((1, (1 << 64) - 2), (-1, (1 << 64) - 1)):
        stream.candidates = np.array([first, 1 << 18, 0], dtype=np.uint64)
        z = standard_normal((2,), dtype=dtype, device="cpu", stream=stream, address=Address(0))
        probability = ((1 << 18) + 0.5) * 2.0**-64 * stats.norm.sf(strips().edges[-1])
        assert sign * float(z[0]) > 8
        assert sign * float(z[0]) == pytest.approx(stats.norm.isf(probability), rel=1e-6)


@pytest.mark.parametrize(
    ("dtype", "word_type", "bits", "ulp"),
    [(torch.float32, np.int32, 32, 2.0**-23), (torch.float64, np.int64, 64, 2.0**-52)],
)
def test_a_value_is_the_place_in_its_strip_that_its_word_says(dtype, word_type, bits, ulp):
    """The definition, in float64: the lowest 16 bits pick the strip, the signed word is the position in it.

    Within two units in the last place, or half the spacing of positions."""
    generator = np.random.default_rng(0)
    words = generator.integers(-(1 << (bits - 1)), 1 << (bits - 1), 200_000, dtype=np.int64).astype(word_type)
    words[:2] = [-(1 << (bits - 1)), (1 << (bits - 1)) - 1 - 0x8000]
    right = strips()
    pick = words.astype(np.int64) & 0xFFFF
    words, pick = words[pick < 2 * right.count], pick[pick < 2 * right.count]
    z = standard_normal((len(words),), dtype=dtype, device="cpu", stream=CraftedStream(words), address=Address(0))
    strip = pick % right.count
    side = np.where(pick < right.count, 1.0, -1.0)
    width = right.edges[strip + 1] - right.edges[strip]
    expected = side * (right.edges[strip] + width * (words.astype(np.float64) * 2.0**-bits + 0.5))
    tolerance = 2 * ulp * right.edges[strip + 1] + width * 2.0 ** (15 - bits)
    assert (np.abs(z.numpy() - expected) <= tolerance).all()


@pytest.mark.statistical
def test_picks_and_positions_are_uniform_and_independent():
    """χ² of 4e6 float64 values over 256 equally likely intervals, in each of 16 classes by place; false alarm 2e-6."""
    u = stats.norm.cdf(draw(4_000_000, torch.float64, seed=14).numpy())
    counts = np.stack([np.histogram(u[place::16], 256, (0, 1))[0] for place in range(16)])
    assert stats.chisquare(counts.ravel()).pvalue > 1e-6
    fine = np.histogram(u[np.abs(u - 0.5) < 1 / 64] * 32, 4096, (15.5, 16.5))[0]
    assert stats.chisquare(fine).pvalue > 1e-6


def test_missing_values_are_filled_in_their_order_whatever_the_threads():
    """Three words in different chunks pick the remainder; they get its first three values, from left to right."""
    count, places = 3 * CHUNK_VALUES, [5, CHUNK_VALUES + 3, 3 * CHUNK_VALUES - 1]
    words = np.zeros(count, np.int32)
    words[places] = REMAINDER
    candidates = np.random.default_rng(1).integers(0, 1 << 64, (1000, 3), dtype=np.uint64)

    class Stream:
        def fill(self, buffer, address, offset=0):
            if offset < 1 << 60:
                buffer[:] = words[offset // 4 : offset // 4 + len(buffer)]
            else:
                buffer[:] = candidates[: len(buffer)]

    torch.set_num_threads(2)
    z = standard_normal((count,), dtype=torch.float32, device="cpu", stream=Stream(), address=Address(0))
    np.testing.assert_array_equal(z[places].numpy(), remainder(candidates)[:3].astype(np.float32))
    total = torch.full((count,), 3.0)
    update = noisy_update(total, noise_std=2.0, divisor=4.0, stream=Stream(), address=Address(0))
    torch.testing.assert_close(update, (total + 2 * z) / 4)


def test_candidates_are_read_until_all_places_are_filled():
    """Rejected ones are followed by others, at addresses that were not read before."""
    offsets = []

    class Stingy:
        def fill(self, buffer, address, offset=0):
            buffer[:] = REMAINDER
            if offset >= 1 << 60:
                offsets.append((offset, buffer.nbytes))
                # the first box, its far upper corner: never accepted; but for one, in the tail
                buffer[:] = np.array([0, (1 << 64) - 1, (1 << 64) - 1], dtype=np.uint64)
                buffer[0] = FAR_TAIL

    z = standard_normal((3,), dtype=torch.float32, device="cpu", stream=Stingy(), address=Address(0))
    assert (z > 9).all()
    assert len(offsets) == 3
    for (begin, size), (after, _) in itertools.pairwise(offsets):
        assert after == begin + size
        assert after % 16 == 0


@pytest.mark.parametrize(("dtype", "word_type", "bits"), [(torch.float32, np.int32, 32), (torch.float64, np.int64, 64)])
def test_extreme_words_give_finite_values_within_the_strips(dtype, word_type, bits):
    picks = np.arange(2 * strips().count)
    for high in (-(1 << (bits - 17)), (1 << (bits - 17)) - 1):
        words = (high * PICKS + picks).astype(word_type)
        z = standard_normal((len(words),), dtype=dtype, device="cpu", stream=CraftedStream(words), address=Address(0))
        assert torch.isfinite(z).all()
        assert float(z.abs().max()) < strips().edges[-1] * (1 + 1e-6)


def test_the_table_is_read_only_in_effect():
    """Drawing leaves the shared table as it was."""
    before = pick_table(32).copy()
    draw(CHUNK_VALUES)
    np.testing.assert_array_equal(pick_table(32), before)


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


@pytest.mark.parametrize("std", [0.0, 3.0])
def test_an_overwritten_total_holds_the_update(std):
    total = torch.randn(7, 5)
    arguments = {"noise_std": std, "divisor": 7.0, "stream": KeyStream.fixed_for_tests(2), "address": Address(4)}
    expected = noisy_update(total, **arguments)
    update = noisy_update(total, **arguments, overwrite=True)
    assert update.data_ptr() == total.data_ptr()
    assert torch.equal(update, expected)
    assert torch.equal(total, expected)
    with pytest.raises(InvalidArgumentError, match="contiguous"):
        noisy_update(total.t(), **arguments, overwrite=True)


def test_no_noise_adds_nothing_and_draws_nothing():
    total = torch.randn(10)
    update = noisy_update(total, noise_std=0.0, divisor=1.0, stream=CraftedStream(None), address=Address(0))
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
