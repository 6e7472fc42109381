"""Are examples drawn as charged? Honest draws pass every check; each dishonest kind fails the one about it."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from hushgrad.accounting.events.truncated_poisson import inclusion_rate
from hushgrad.checks.verification.checks.sampling import _pair_rate, read_sampling
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
