"""Are examples drawn as charged? Honest draws pass every check; each dishonest kind fails the one about it."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
from scipy import stats

from hushgrad.accounting.events.truncated_poisson import inclusion_rate
from hushgrad.checks.verification.checks.sampling import _pair_rate, draws_needed, read_sampling
from hushgrad.checks.verification.verdict import failed_codes
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.sampling.poisson import PoissonSampling


def test_the_rates_of_truncated_draws_are_those_of_the_law_of_sizes() -> None:
    for count, rate, most in ((30, 0.3, 8), (30, 0.3, 30), (12, 1.0, 5), (50, 0.02, 1)):
        sizes = np.arange(count + 1)
        law = stats.binom.pmf(sizes, count, rate)
        kept = np.minimum(sizes, most)
        assert inclusion_rate(count, rate, most) == pytest.approx((law * kept).sum() / count, rel=1e-9)
        pairs = (law * kept * (kept - 1)).sum() / (count * (count - 1))
        assert _pair_rate(count, rate, most) == pytest.approx(pairs, rel=1e-9, abs=1e-12)
    assert inclusion_rate(10**9, 1e-5, 10_500) == pytest.approx(1e-5, rel=1e-6)


@pytest.mark.statistical
@pytest.mark.parametrize(("count", "rate"), [(1000, 0.03), (50, 0.03), (300, 0.5), (20_000, 0.002), (100, 1.0)])
def test_the_library_s_own_draws_pass(count: int, rate: float) -> None:
    """False-alarm probability 1e-6 each."""
    sampler = PoissonSampling(rate).sampler(count, KeyStream.fixed_for_tests(4))
    draws = [sampler.draw(step).tolist() for step in range(3000)]
    reading = read_sampling(draws, population=count, rate=rate, false_alarm=1e-6)
    assert all(check.passed for check in reading.checks.values()), reading.checks
    assert reading.causes == ()


def test_too_few_draws_are_a_typed_error() -> None:
    with pytest.raises(InvalidArgumentError, match="at least 20"):
        read_sampling([[1, 2]] * 3, population=10, rate=0.2, false_alarm=1e-6)


N, Q, STEPS, FALSE_ALARM = 400, 0.05, 1200, 1e-6
Draw = Callable[[np.random.Generator, int], np.ndarray]


def poisson(source: np.random.Generator, step: int) -> np.ndarray:
    return np.flatnonzero(source.random(N) < Q)


def failed(draw: Draw, *, most: int | None = None) -> set[str]:
    source = np.random.default_rng(5)
    draws = [draw(source, step) for step in range(STEPS)]
    reading = read_sampling(draws, population=N, rate=Q, false_alarm=FALSE_ALARM, max_batch_size=most)
    assert bool(reading.causes) == bool(failed_codes(reading.checks.values()))
    return failed_codes(reading.checks.values())


def capped(source: np.random.Generator, step: int) -> np.ndarray:
    return source.permutation(poisson(source, step))[:24]


@pytest.mark.statistical
def test_true_draws_pass_every_check_and_each_states_its_size_and_power() -> None:
    """Fixed draws; false alarm 1e-6."""
    draws = [poisson(np.random.default_rng(step), step) for step in range(STEPS)]
    reading = read_sampling(draws, population=N, rate=Q, false_alarm=FALSE_ALARM)
    assert not failed_codes(reading.checks.values())
    assert math.fsum(check.false_alarm for check in reading.checks.values()) <= FALSE_ALARM * (1 + 1e-9)
    assert all(check.part == "sampling" and check.sample_size and check.power for check in reading.checks.values())
    assert reading.rate == pytest.approx(Q, rel=0.05)


WRONG: dict[str, tuple[Draw, str]] = {
    "a record twice": (lambda source, step: np.append(poisson(source, step), [7, 7]), "sampling-range"),
    "a record that is none": (lambda source, step: np.append(poisson(source, step), N), "sampling-range"),
    "another rate": (lambda source, step: np.flatnonzero(source.random(N) < 1.2 * Q), "sampling-rate"),
    "one size": (lambda source, step: source.permutation(N)[: round(N * Q)], "sampling-sizes"),
    "a cap that is not charged": (capped, "sampling-sizes"),
    "records preferred": (
        lambda source, step: np.flatnonzero(source.random(N) < np.where(np.arange(N) < N // 2, 1.5 * Q, 0.5 * Q)),
        "sampling-inclusion",
    ),
    "half of the last draw": (
        lambda source, step: np.flatnonzero(np.random.default_rng(step // 2).random(N) < Q),
        "sampling-overlaps",
    ),
    "neighbours together": (
        lambda source, step: (2 * np.flatnonzero(source.random(N // 2) < Q)[:, None] + [0, 1]).ravel(),
        "sampling-neighbours",
    ),
    "the same draws again": (lambda source, step: poisson(np.random.default_rng(step % 50), 0), "sampling-repeats"),
}


@pytest.mark.statistical
@pytest.mark.parametrize("name", WRONG)
def test_draws_that_are_not_as_charged_fail_the_check_that_is_about_it(name: str) -> None:
    """Fixed draws."""
    draw, code = WRONG[name]
    assert code in failed(draw)


@pytest.mark.statistical
def test_a_cap_that_is_charged_passes_and_a_larger_draw_fails_at_once() -> None:
    """Fixed draws; false alarm 1e-6."""
    assert failed(capped, most=24) == set()
    assert "sampling-sizes" in failed(poisson, most=24)


def test_a_rate_of_1_is_exact() -> None:
    def read(draws: list[range]) -> set[str]:
        reading = read_sampling(draws, population=30, rate=1, false_alarm=FALSE_ALARM)
        return failed_codes(reading.checks.values())

    assert read([range(30)] * 40) == set()
    assert {"sampling-sizes", "sampling-inclusion"} <= read([range(30)] * 39 + [range(29)])


def test_a_finer_resolution_takes_more_draws_and_a_larger_data_set_fewer() -> None:
    assert draws_needed(1000, 0.1, 0.01, 1e-6) > draws_needed(1000, 0.1, 0.02, 1e-6)
    assert draws_needed(1000, 0.1, 0.01, 1e-6) > draws_needed(10_000, 0.1, 0.01, 1e-6)
    assert draws_needed(1000, 1.0, 0.01, 1e-6) == 20
