import math

import numpy as np
import pytest
from dp_accounting.gaussian_mechanism import get_epsilon_gaussian
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.stats import norm

from hushgrad.accounting.gaussian import gaussian_epsilon, log_delta


@settings(deadline=None)
@given(st.floats(0.02, 1e3), st.floats(1e-12, 0.5))
def test_the_formula_agrees_with_dp_accounting(sigma: float, delta: float) -> None:
    theirs = get_epsilon_gaussian(sigma, delta, tol=1e-13)
    assert gaussian_epsilon(sigma**-2, delta) == pytest.approx(theirs, rel=1e-8, abs=1e-11)


@pytest.mark.parametrize("mu", [1e-3, 0.1, 1.0, 5.0])
@pytest.mark.parametrize("ratio", [0.0, 0.5, 2.0])
def test_delta_is_the_integral_that_defines_it(mu: float, ratio: float) -> None:
    epsilon = ratio * mu
    start = mu / 2 + epsilon / mu
    integral, _ = quad(lambda x: norm.pdf(x - mu) - math.exp(epsilon) * norm.pdf(x), start, start + 40, epsabs=1e-16)
    assert math.exp(log_delta(mu, epsilon)) == pytest.approx(integral, rel=1e-6)


@settings(deadline=None)
@given(st.floats(1e-30, 1e30), st.floats(1e-300, 0.99))
def test_epsilon_is_finite_and_on_the_private_side(precision: float, delta: float) -> None:
    """Guarantee: on the private side."""
    epsilon = gaussian_epsilon(precision, delta)
    assert 0 <= epsilon < math.inf
    if precision <= 1e12:
        assert log_delta(math.sqrt(precision), epsilon) <= math.log(delta) + 1e-9 * abs(math.log(delta))


def test_the_midpoint_rule_continues_the_formula() -> None:
    for z in np.linspace(0, 6, 13):
        assert log_delta(0.99999e-5, z * 1e-5) == pytest.approx(log_delta(1.00001e-5, z * 1e-5), abs=1e-3)


def test_the_tail_bound_continues_the_exact_value() -> None:
    below, above = gaussian_epsilon(0.999999e12, 1e-5), gaussian_epsilon(1.000001e12, 1e-5)
    assert 0 <= above / below - 1 < 3e-5


def test_limits() -> None:
    assert gaussian_epsilon(0.0, 1e-5) == 0
    assert gaussian_epsilon(math.inf, 1e-5) == math.inf
    assert gaussian_epsilon(1e-12, 1e-5) == 0
