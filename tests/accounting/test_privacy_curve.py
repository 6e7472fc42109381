"""Few pairs (ε, δ) that hold bound all of a mechanism's trade-offs."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from hushgrad.accounting import Gaussian
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.privacy_curve import PrivacyCurve

EPSILONS = np.linspace(0.0, 8.0, 60)


def gaussian(mu: float) -> PrivacyCurve:
    return PrivacyCurve.of_delta(lambda at: math.exp(log_delta(mu, at)), EPSILONS)


@pytest.mark.parametrize("mu", [0.5, 1.0, 2.0])
def test_the_lines_lie_below_the_trade_off_curve_and_near_it(mu: float) -> None:
    """Guarantee: whatever it returns holds for every mechanism for which all of its pairs hold."""
    alphas = np.array([1e-4, 1e-3, 0.01, 0.1, 0.3, 0.5, 0.9, 0.999])
    exact = norm.cdf(norm.ppf(1 - alphas) - mu)
    found = gaussian(mu).false_negative_rates(alphas)
    assert (found <= exact + 1e-12).all()
    np.testing.assert_allclose(found, exact, atol=2e-3)


@given(mu=st.floats(0.1, 3.0), at=st.floats(0.0, 9.0))
def test_a_delta_between_known_pairs_is_never_too_small(mu: float, at: float) -> None:
    assert gaussian(mu).delta(at) >= math.exp(log_delta(mu, at)) * (1 - 1e-9)


def test_one_pair_is_a_randomised_response() -> None:
    """(ln 3, 0) bounds the advantage by (3 − 1)/(3 + 1), and nothing is lost at ε = ln 3 itself."""
    curve = PrivacyCurve(np.array([math.log(3)]), np.array([0.0]))
    assert curve.delta(0.0) == pytest.approx(0.5)
    assert curve.delta(math.log(3)) == pytest.approx(0.0, abs=1e-12)
    assert curve.false_negative_rates(np.array([0.25]))[0] == pytest.approx(0.25)


def test_epsilon_at_many_deltas_gives_the_same_curve() -> None:
    curve = PrivacyCurve.of_epsilon([(Gaussian(1.0), 1)], np.geomspace(1e-9, 0.38, 40))
    exact = norm.cdf(norm.ppf(1 - 0.05) - 1.0)
    assert exact - 0.01 < curve.false_negative_rates(np.array([0.05]))[0] <= exact


def test_an_infinite_epsilon_tells_nothing() -> None:
    curve = PrivacyCurve.of_epsilon([(Gaussian(0.0), 1)], np.array([1e-5]))
    assert curve.delta(3.0) == 1.0
    assert curve.false_negative_rates(np.array([0.1]))[0] == 0.0
