import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import PoissonSampled, epsilon
from hushgrad.accounting.gaussian import gaussian_epsilon
from hushgrad.accounting.renyi import divergences


@settings(max_examples=30, deadline=None)
@given(st.floats(1e-3, 0.9), st.floats(1, 5), st.integers(2, 8))
def test_the_divergence_is_the_integral_that_defines_it(rate: float, noise: float, order: int) -> None:
    x = np.linspace(-15 * noise, order + 15 * noise, 40_001)
    density = np.exp(-((x / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))
    ratio = 1 - rate + rate * np.exp((2 * x - 1) / (2 * noise**2))
    moment = np.trapezoid(density * ratio**order, x)
    assert divergences(rate, noise, (order,))[0] == pytest.approx(math.log(moment) / (order - 1), rel=1e-6, abs=1e-12)


def test_a_divergence_below_the_rounding_of_one_keeps_its_digits() -> None:
    # To first order in q²: D_α = α q² (exp(1/σ²) − 1) / 2.
    expected = 5 * 1e-24 * math.expm1(1 / 4) / 2
    assert divergences(1e-12, 2.0, (5,))[0] == pytest.approx(expected, rel=1e-6)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.9, 1e4, 10**7), (0.5, 1e5, 10**9), (1e-4, 4.0, 10**8)])
def test_many_steps_of_a_tiny_divergence_are_not_free(rate: float, noise: float, steps: int) -> None:
    """Guarantee: an upper bound, also where a step's divergence is below the rounding of 1."""
    # By the central limit, one Gaussian with this precision; the bound lies above it.
    precision = steps * rate**2 * math.expm1(noise**-2)
    value = epsilon([(PoissonSampled(rate, noise), steps)], 1e-8, "rdp")
    assert 0 < gaussian_epsilon(precision, 1e-8) < value < 2 * gaussian_epsilon(precision, 1e-8)


def test_both_ways_to_a_divergence_give_one_bound() -> None:
    here = epsilon([(PoissonSampled(0.000785, 1.0), 10**5)], 1e-8, "rdp")
    there = epsilon([(PoissonSampled(0.000755, 1.0), 10**5)], 1e-8, "rdp")
    assert divergences(0.000785, 1.0, (2,))[0] > 1e-6 > divergences(0.000755, 1.0, (2,))[0]
    assert there == pytest.approx(here, rel=0.06)
