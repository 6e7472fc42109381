import math
from typing import Any

import pytest
from scipy.stats import norm

from hushgrad.accounting import FixedSizeSampled, Gaussian, PoissonSampled, TruncatedPoisson, epsilon
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.risk import (
    delta,
    delta_bounds,
    false_negative_rate,
    gaussian_mu,
    membership_advantage,
    renyi_divergence,
    trade_off_curve,
    true_positive_rate,
    zero_concentrated,
)
from hushgrad.errors import InvalidArgumentError

PLAN = [(PoissonSampled(0.01, 1.0), 1000)]
GAUSS = [(Gaussian(2.0), 4)]


@pytest.mark.parametrize("at", [1e-12, 1e-5, 0.01])
def test_delta_and_epsilon_are_inverse(at: float) -> None:
    """Guarantee: δ(ε) lies between them (the bounds); ε was found from this δ."""
    bounds = delta_bounds(PLAN, epsilon(PLAN, at))
    assert bounds.lower <= at * (1 + 1e-6)
    assert bounds.upper == pytest.approx(at, rel=1e-5)


@pytest.mark.parametrize("rate", [1e-4, 0.01, 0.3, 0.7])
def test_the_trade_off_of_a_gaussian_release_is_its_formula(rate: float) -> None:
    """Guarantee: a lower bound on the error of every attack."""
    exact = norm.cdf(norm.ppf(1 - rate) - 1.0)
    found = false_negative_rate(GAUSS, rate)
    assert found <= exact * (1 + 1e-9)
    assert found == pytest.approx(exact, rel=1e-4)
    assert true_positive_rate(GAUSS, rate) == 1 - found


def test_the_advantage_is_the_total_variation() -> None:
    """Guarantee: an upper bound on the advantage of every membership attack."""
    assert membership_advantage(GAUSS) == pytest.approx(2 * norm.cdf(0.5) - 1, rel=1e-6)
    one_step = [(PoissonSampled(0.1, 1.0), 1)]
    assert membership_advantage(one_step) == pytest.approx(0.1 * (2 * norm.cdf(0.5) - 1), rel=1e-6)


def test_a_trade_off_curve_falls_and_lies_under_blind_guessing() -> None:
    rates = [0.001, 0.01, 0.1, 0.5, 0.9]
    curve = trade_off_curve(PLAN, rates)
    assert curve == sorted(curve, reverse=True)
    assert all(fnr <= 1 - rate for fnr, rate in zip(curve, rates, strict=True))


def test_mu_is_an_upper_bound_down_to_the_smallest_delta() -> None:
    """Guarantee: at every ε with δ(ε) >= smallest_delta the curve of μ-GDP lies above δ(ε)."""
    mu = gaussian_mu(PLAN, 1e-8)
    last = epsilon(PLAN, 1e-8)
    for part in range(40):
        at = last * part / 41
        assert delta_bounds(PLAN, at).lower <= math.exp(log_delta(mu, at))
    assert mu < 1.4 * math.sqrt(1000 * 1e-4 * math.expm1(1.0))  # the central limit is not far below
    assert gaussian_mu(GAUSS) == 1.0


def test_zero_concentration_is_that_without_sampling() -> None:
    assert zero_concentrated(PLAN) == 500
    assert zero_concentrated(GAUSS) == 0.5
    assert renyi_divergence(PLAN, 2048) / 2048 == pytest.approx(500, rel=0.01)
    assert renyi_divergence(GAUSS, 3) == pytest.approx(1.5)
    assert renyi_divergence(PLAN, 2) == pytest.approx(1000 * math.log1p(1e-4 * math.expm1(1.0)))


def test_nothing_and_no_noise() -> None:
    assert (membership_advantage([]), false_negative_rate([], 0.2), gaussian_mu([])) == (0, 0.8, 0)
    bare = [(Gaussian(0.0), 1)]
    assert (membership_advantage(bare), false_negative_rate(bare, 0.2)) == (1, 0)
    assert gaussian_mu(bare) == zero_concentrated(bare) == renyi_divergence(bare, 2) == math.inf


@pytest.mark.parametrize("threshold", [-0.5, 0.1, 1.0, 2.0, 3.0])
def test_no_threshold_attack_has_more_power_than_is_said(threshold: float) -> None:
    """Guarantee: an upper bound on the power of every attack.

    The attacker sees the sum of one sampled step and says "present" above a threshold: the best test there is.
    """
    rate, noise = 0.2, 0.8
    false_positive = float(norm.sf(threshold / noise))
    power = (1 - rate) * false_positive + rate * float(norm.sf((threshold - 1) / noise))
    bound = true_positive_rate([(PoissonSampled(rate, noise), 1)], false_positive)
    assert power <= bound
    if threshold >= 1:  # below, the attack in the other direction is the stronger one
        assert bound <= power * 1.01


@pytest.mark.parametrize("plan", [(0.01, 1.0, 100_000), (0.01, 4.0, 100)])
def test_a_curve_of_several_rates_is_that_of_each_and_as_good_as_a_fine_grid(plan: tuple[float, float, int]) -> None:
    """Guarantee: a lower bound; against the best of 60 ε, each with a δ of its own."""
    composition = [(PoissonSampled(plan[0], plan[1]), plan[2])]
    rates = [1e-3, 0.1]
    together = trade_off_curve(composition, rates)
    grid = [0.0, *(10 ** (k / 12 - 4) for k in range(60))]
    curve = [(at, delta_bounds(composition, at)) for at in grid]
    for rate, found in zip(rates, together, strict=True):
        assert found == pytest.approx(false_negative_rate(composition, rate), rel=1e-4)
        best = max(max(1 - d.upper - math.exp(e) * rate, math.exp(-e) * (1 - d.upper - rate)) for e, d in curve)
        assert found >= best * (1 - 1e-5)


@pytest.mark.parametrize("bad", [-1, math.nan, math.inf, "1", True])
def test_a_bad_epsilon_or_rate_is_refused(bad: object) -> None:
    with pytest.raises(InvalidArgumentError):
        delta(PLAN, bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        false_negative_rate(PLAN, bad)  # type: ignore[arg-type]
    with pytest.raises(InvalidArgumentError):
        renyi_divergence(PLAN, bad)  # type: ignore[arg-type]


CUT = [(TruncatedPoisson(0.02, 1.0, 1000, 30), 20)]
FIXED = [(FixedSizeSampled(20, 1000, 2.0), 20)]


@pytest.mark.parametrize("plan", [pytest.param(CUT, marks=pytest.mark.slow), FIXED], ids=["cut", "fixed size"])
def test_attacks_on_steps_of_limited_size_are_bounded_by_every_pair_that_holds(plan: Any) -> None:
    """Guarantee: a lower bound on the error of every attack."""
    rates = [0.01, 0.1]
    curve = trade_off_curve(plan, rates)
    for at in (1e-5, 1e-2):
        found = epsilon(plan, at)
        for rate, missed in zip(rates, curve, strict=True):
            assert missed >= 1 - at - math.exp(found) * rate - 1e-3
    assert 0 < membership_advantage(plan) < 0.5
    assert delta(plan, epsilon(plan, 1e-5)) == pytest.approx(1e-5, rel=0.12)
    assert delta(plan, epsilon(plan, 1e-5)) >= 1e-5 * (1 - 1e-6)


def test_cut_steps_cost_no_less_than_they_would_without_cuts_where_cuts_are_rare() -> None:
    rare = [(TruncatedPoisson(0.02, 1.0, 1000, 80), 20)]
    plain = [(PoissonSampled(0.02, 1.0), 20)]
    assert membership_advantage(rare) >= membership_advantage(plain)
    assert false_negative_rate(rare, 0.05) <= false_negative_rate(plain, 0.05)
