"""The two measures that enclose a pass's likelihood ratio, against moments, quadrature and closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from hushgrad.accounting.allocation.gathered import Gathered
from hushgrad.accounting.allocation.one_pass import LOWER, UPPER, delta_of, epsilon_of, pass_losses
from hushgrad.accounting.allocation.ratio import Ratio, grid_of_sum, pairs, sum_of
from hushgrad.accounting.allocation.spread import Spread
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.saddle_point.step_measure import ADD, REMOVE

TAIL = 1e-14


def moment(ratio: Ratio, order: int) -> float:
    return float(ratio.masses @ ratio.values**order)


def exact_moment(noise: float, count: int, order: int) -> float:
    """E (Y_1 + … + Y_t)^a, from the power series (Σ_m E Y^m x^m/m!)^t: exact, and of nothing that is tested."""
    one = np.array([math.exp(m * (m - 1) / (2 * noise**2)) / math.factorial(m) for m in range(order + 1)])
    series = np.array([1.0] + [0.0] * order)
    for _ in range(count):
        series = np.convolve(series, one)[: order + 1]
    return float(series[order] * math.factorial(order))


@pytest.mark.parametrize(("noise", "count"), [(1.0, 1), (1.0, 2), (0.8, 7), (1.5, 32), (4.0, 100)])
def test_the_moments_of_a_sum_lie_between_those_of_both_measures(noise: float, count: int) -> None:
    """Guarantee: every mean of a convex function is at least the true one. Of `Gathered`:
    Guarantee: every mean of a convex function is at most the true one.
    """
    upper, lower = sum_of(Spread, noise, count, TAIL), sum_of(Gathered, noise, count, TAIL)
    assert isinstance(upper, Spread)
    assert moment(upper, 0) == pytest.approx(1, rel=1e-5)
    assert moment(lower, 0) == pytest.approx(1, rel=1e-9)
    assert moment(upper, 1) + upper.beyond == pytest.approx(count, rel=1e-5)
    assert moment(lower, 1) == pytest.approx(count, rel=1e-9)
    for order in (2, 3):
        exact = exact_moment(noise, count, order)
        assert moment(lower, order) <= exact <= moment(upper, order) * (1 + 1e-9)
        assert moment(upper, order) / moment(lower, order) < 1 + 3e-3 * order


def of_two(noise: float, epsilon: float, direction: str, third: int = 0) -> float:
    """δ(ε) of t = 2 bins (or 3): over Y_1 (and Y_2) by quadrature, over the last one by the formula of an option."""
    z = np.linspace(-9, 9 + 1 / noise, 6001 if not third else 801)
    weights = norm.pdf(z) * (z[1] - z[0])
    y = np.exp(z / noise - 1 / (2 * noise**2))
    sums, masses, bins = y, weights, 2
    if third:
        sums, masses, bins = np.add.outer(y, y).ravel(), np.outer(weights, weights).ravel(), 3
    sign = 1.0 if direction == REMOVE else -1.0
    strike = (bins * math.exp(sign * epsilon)) - sums  # E (Y − strike)_+, or (strike − Y)_+
    d = (-np.log(np.maximum(strike, 1e-300)) + 1 / (2 * noise**2)) * noise
    if direction == REMOVE:
        option = np.where(strike > 0, norm.cdf(d) - strike * norm.cdf(d - 1 / noise), 1 - strike)
        return float(masses @ option) / bins
    option = np.where(strike > 0, strike * norm.cdf(-(d - 1 / noise)) - norm.cdf(-d), 0.0)
    return float(masses @ option) * math.exp(epsilon) / bins


@pytest.mark.parametrize("direction", [REMOVE, ADD])
@pytest.mark.parametrize("noise", [0.5, 1.0, 3.0])
@pytest.mark.parametrize("bins", [2, 3])
def test_delta_of_few_bins_is_enclosed_at_every_epsilon(noise: float, bins: int, direction: str) -> None:
    """Guarantee: δ(ε), also of a composition with it, is at least (`UPPER`), or at most (`LOWER`), the true one."""
    upper, lower = (pass_losses(bins, noise, direction, side, TAIL) for side in (UPPER, LOWER))
    for epsilon in (0.0, 0.05, 0.3, 1.0, 2.5):
        exact = of_two(noise, epsilon, direction, third=bins - 2)
        if exact < 1e-10:
            continue
        assert delta_of(lower, epsilon) * (1 - 1e-8) <= exact <= delta_of(upper, epsilon) * (1 + 1e-8)
        assert exact < 1e-6 or delta_of(upper, epsilon) - delta_of(lower, epsilon) <= 1.2e-2 * exact


def test_one_bin_is_a_gaussian_release() -> None:
    for noise in (0.4, 1.0, 5.0):
        for direction in (REMOVE, ADD):
            upper, lower = (pass_losses(1, noise, direction, side, TAIL) for side in (UPPER, LOWER))
            for epsilon in (0.0, 0.5, 3.0):
                exact = math.exp(log_delta(1 / noise, epsilon))
                assert delta_of(lower, epsilon) * (1 - 1e-8) <= exact + 1e-14
                assert exact <= delta_of(upper, epsilon) * (1 + 1e-8)


@settings(max_examples=6, deadline=None)
@given(st.floats(0.15, 20), st.integers(2, 60), st.sampled_from([REMOVE, ADD]), st.floats(-9, -1))
def test_epsilon_inverts_delta_and_the_sides_are_in_order(
    noise: float, bins: int, direction: str, log_delta_: float
) -> None:
    delta = 10**log_delta_
    upper, lower = (pass_losses(bins, noise, direction, side, TAIL) for side in (UPPER, LOWER))
    high, low = epsilon_of(upper, delta), epsilon_of(lower, delta)
    assert low <= high
    assert delta_of(upper, high) <= delta * (1 + 1e-9)
    if high:
        assert delta_of(upper, high) == pytest.approx(delta, rel=1e-6)
    assert delta_of(upper, high * (1 + 1e-9)) <= delta
    assert delta_of(lower, low) == pytest.approx(delta, rel=1e-6) or low == 0


@settings(max_examples=10, deadline=None)
@given(st.floats(0.2, 10), st.integers(1, 12), st.integers(1, 12))
def test_no_pair_of_values_is_left_out(noise: float, one: int, other: int) -> None:
    """Guarantee: the pairs of a sum have all of its mass and mean, also where a ratio is added to itself."""
    a = sum_of(Gathered, noise, one, 1e-8)
    b = a if one == other else sum_of(Gathered, noise, other, 1e-8)
    found = list(pairs(a, b))
    assert sum(masses.sum() for _, masses in found) == pytest.approx(a.masses.sum() * b.masses.sum(), rel=1e-12)
    mean = sum(float(values @ masses) for values, masses in found)
    assert mean == pytest.approx(one + other, rel=1e-9)
    grid = grid_of_sum(a, b, 1e-10)
    values = np.sort(np.concatenate([values for values, _ in found]))
    cell = grid.cell_of(values)
    inside = (cell > 0) & (cell < len(grid.points))
    assert np.all(grid.points[cell[inside] - 1] <= values[inside] * (1 + 1e-9))
    assert np.all(values[inside] <= grid.points[cell[inside]] * (1 + 1e-9))


def test_a_coarser_grid_only_moves_both_sides_apart(monkeypatch: pytest.MonkeyPatch) -> None:
    from hushgrad.accounting.allocation import ratio

    fine = [sum_of(kind, 1.0, 20, TAIL) for kind in (Gathered, Spread)]
    monkeypatch.setattr(ratio, "POINTS_OF_A_DEVIATION", 3.0)
    coarse = [sum_of(kind, 1.0, 20, TAIL) for kind in (Gathered, Spread)]

    def excess(found: Ratio, at: float) -> float:
        beyond = found.beyond if isinstance(found, Spread) else 0.0
        return float(found.masses @ np.maximum(found.values - 20 * at, 0)) + beyond

    for at in (1.0, 1.5, 3.0):
        assert excess(coarse[0], at) < excess(fine[0], at) < excess(fine[1], at) < excess(coarse[1], at)
