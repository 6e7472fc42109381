"""Random allocation (balls in bins): an interval for ε that holds, is narrow, and composes."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import (
    Composition,
    DisjointPass,
    Gaussian,
    PoissonSampled,
    RandomAllocation,
    calibrate_noise_multiplier,
    epsilon,
    epsilon_bounds,
    guarantee,
)
from hushgrad.accounting.accountants import Accountant, EpsilonBounds, _asked
from hushgrad.accounting.allocation.one_pass import LOWER, UPPER, pass_losses
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.composition import NormalForm, normal_form
from hushgrad.accounting.cross_check import cross_check
from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.neighbours import epsilon_under
from hushgrad.accounting.risk import delta_bounds, gaussian_mu, renyi_divergence, trade_off_curve, zero_concentrated
from hushgrad.accounting.saddle_point.step_measure import REMOVE
from hushgrad.accounting.selection import selection_epsilon
from hushgrad.errors import AccountingError, InvalidArgumentError

PROTOTYPE = json.loads((Path(__file__).parent / "golden" / "balls_in_bins.json").read_text(encoding="utf-8"))


def passes(bins: int, noise: float, count: int = 1, participations: int = 1) -> Composition:
    return [(RandomAllocation(bins, noise, index, participations), 1) for index in range(count)]


@pytest.mark.parametrize("row", PROTOTYPE["rows"], ids=lambda row: f"{row['sigma']}-{row['bins']}-{row['passes']}")
def test_the_interval_lies_in_that_of_the_prototype_and_is_narrow(row: dict[str, float]) -> None:
    """Rounding all losses up, or down, gives an interval, too: 1% to 130% wide, where these are below a fifth of a
    percent (the acceptance: 1% at one pass, 3% at fifteen)."""
    plan = passes(int(row["bins"]), row["sigma"], int(row["passes"]))
    bounds = epsilon_bounds(plan, PROTOTYPE["delta"])
    assert row["lower"] <= bounds.lower <= bounds.upper <= row["upper"]
    assert bounds.error <= 2e-3 * bounds.lower
    assert bounds.upper < row["poisson"]


def losses(rng: np.random.Generator, bins: int, noise: float, count: int, participations: int = 1) -> np.ndarray:
    """Draw `count` losses of a pass in the direction "remove", for one participation or two."""
    x = rng.normal(size=(count, bins)) * noise
    x[:, :participations] += 1
    y = np.exp((2 * x - 1) / (2 * noise**2))
    if participations == 1:
        return np.log(y.mean(1))
    return np.log((y.sum(1) ** 2 - (y**2).sum(1)) / (bins * (bins - 1)))


@pytest.mark.parametrize(
    ("bins", "noise", "count", "participations"), [(100, 0.4, 1, 1), (32, 0.6, 1, 1), (12, 0.9, 5, 1), (9, 1.0, 2, 2)]
)
def test_simulated_delta_is_between_the_bounds(bins: int, noise: float, count: int, participations: int) -> None:
    """By Maurer & Pontil's empirical Bernstein bound, each of 8 comparisons is false with probability 1e-9."""
    rng = np.random.default_rng(17)
    number = 40_000
    total = sum(losses(rng, bins, noise, number, participations) for _ in range(count))
    for at in (0.2, 1.0):
        parts = np.maximum(-np.expm1(at - total), 0)
        log = math.log(4e9)
        room = math.sqrt(2 * parts.var(ddof=1) * log / number) + 7 * log / (3 * (number - 1))
        bounds = delta_bounds(passes(bins, noise, count, participations), at)
        assert bounds.lower - room <= parts.mean() <= bounds.upper + room
        assert room < parts.mean() / 4  # else nothing was compared


def log_mean_exp(z: np.ndarray) -> np.ndarray:
    largest = z.max(1)
    return largest + np.log(np.exp(z - largest[:, None]).mean(1))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("noise", "bins", "count", "shift", "number"),
    [(0.6, 100, 1, 2.4, 400_000), (0.8, 100, 1, 3.0, 400_000), (1.0, 32, 15, 1.6, 300_000)],
)
def test_simulated_delta_is_that_of_the_reference_cells(
    noise: float, bins: int, count: int, shift: float, number: int
) -> None:
    """By importance sampling, x drawn with one bin shifted; weights are those of a shift in a random bin, so that no
    other bin's large value is missed. δ at either end of the interval for 1e-5 is 1e-5 up to five standard errors:
    false alarm 1e-6, by the normal law."""
    rng, parts = np.random.default_rng(1), []
    bounds = epsilon_bounds(passes(bins, noise, count), 1e-5)
    for _ in range(number // 4000):
        total, log_weight = np.zeros(4000), np.zeros(4000)
        for _ in range(count):
            x = rng.standard_normal((4000, bins)) * noise
            x[:, 0] += shift
            total += log_mean_exp((2 * x - 1) / (2 * noise**2))
            log_weight -= log_mean_exp((2 * shift * x - shift**2) / (2 * noise**2))
        ends = np.array([bounds.lower, bounds.upper])
        parts.append(np.exp(log_weight + total)[:, None] * np.maximum(-np.expm1(ends - total[:, None]), 0))
    found = np.concatenate(parts)
    low, high = found.mean(0)
    error = found.std(0, ddof=1) / math.sqrt(len(found))
    assert low + 5 * error[0] >= 1e-5
    assert high - 5 * error[1] <= 1e-5
    assert error.max() < 1e-6


def of_two_bins_and_a_release(noise: float, release: float, epsilon_: float) -> float:
    """δ of a pass of two bins and a Gaussian release, in the direction "remove", by quadrature over the pass."""
    z = np.linspace(-8, 8, 1201)
    weights = np.exp(-(z**2) / 2)
    weights /= weights.sum()
    first, other = np.exp(z / noise + 1 / (2 * noise**2)), np.exp(z / noise - 1 / (2 * noise**2))
    loss = np.log(np.add.outer(first, other) / 2).ravel()
    masses = np.outer(weights, weights).ravel()
    at, mu = epsilon_ - loss, 1 / release
    from scipy.special import ndtr

    gaussian = ndtr(mu / 2 - at / mu) - np.exp(at) * ndtr(-mu / 2 - at / mu)  # of any sign
    return float(masses @ gaussian)


def test_a_pass_composes_with_other_events() -> None:
    plan = [*passes(2, 1.5), (Gaussian(2.0), 1)]
    for at in (0.1, 0.8, 2.0):
        exact = of_two_bins_and_a_release(1.5, 2.0, at)
        bounds = delta_bounds(plan, at)
        assert bounds.lower <= exact * (1 + 1e-6)
        assert exact * (1 - 1e-6) <= bounds.upper
        assert bounds.error <= 5e-3 * exact


def test_one_pass_by_the_contour_is_one_pass_in_closed_form() -> None:
    """A release of next to nothing makes the contour integral of what is otherwise a sum."""
    for noise, bins in ((0.7, 50), (3.0, 10)):
        alone = epsilon_bounds(passes(bins, noise), 1e-6)
        integrated = epsilon_bounds([*passes(bins, noise), (Gaussian(1e6), 1)], 1e-6)
        assert integrated.upper == pytest.approx(alone.upper, rel=2e-4)
        assert integrated.lower == pytest.approx(alone.lower, rel=2e-4)


@pytest.mark.parametrize("side", [UPPER, LOWER])
def test_passes_compose_as_by_plain_convolution(side: str) -> None:
    """The losses of a pass on a lattice, rounded down and up, convolved fifteen times by a tilted Fourier transform."""
    bounds = epsilon_bounds(passes(32, 1.0, 15), 1e-5)
    at = bounds.upper if side == UPPER else bounds.lower
    losses, interval, tilt = pass_losses(32, 1.0, REMOVE, side, 1e-14), 4e-4, 4.0
    found = []
    for rounded in (np.floor, np.ceil):
        places = rounded(losses.losses / interval).astype(int)
        least = int(places.min())
        masses = np.bincount(places - least, np.exp(losses.log_weights))
        tilted = masses * np.exp(tilt * interval * (np.arange(len(masses)) + least))
        size = 1 << math.ceil(math.log2(15 * len(masses)))
        sums = interval * (np.arange(size) + 15 * least)
        total = np.maximum(np.fft.irfft(np.fft.rfft(tilted / tilted.sum(), size) ** 15, size), 0)
        above = sums > at
        parts = total[above] * np.exp(-tilt * sums[above]) * -np.expm1(at - sums[above])
        found.append(float(tilted.sum() ** 15 * parts.sum()))
    assert found[0] < 1e-5 < found[1] < found[0] * 1.03
    assert np.mean(found) == pytest.approx(1e-5, rel=2e-3)


def test_one_bin_and_all_bins_are_gaussian_releases() -> None:
    assert epsilon(passes(1, 1.3, 4), 1e-5) == epsilon([(Gaussian(1.3), 4)], 1e-5)
    assert epsilon(passes(6, 1.3, 2, participations=6), 1e-5) == epsilon([(Gaussian(1.3), 12)], 1e-5)


def test_a_pass_is_charged_whole_with_its_first_step_and_its_weakest_noise() -> None:
    whole = [(RandomAllocation(20, 1.0, index), 20) for index in range(2)]
    broken_off = [(RandomAllocation(20, 1.0, 0), 20), (RandomAllocation(20, 1.0, 1), 1)]
    assert normal_form(whole) == normal_form(broken_off)
    assert normal_form([(RandomAllocation(20, 2.0, 0), 3), *whole[:1]]) == normal_form(whole[:1])


def test_passes_of_other_plans_are_passes_of_their_own() -> None:
    mixed = [(RandomAllocation(20, 1.0, 0), 1), (RandomAllocation(10, 1.0, 0), 1), (PoissonSampled(0.01, 1.0), 50)]
    form = normal_form(mixed)
    assert form.allocated == ((10, 1, 1.0, 1), (20, 1, 1.0, 1))
    assert epsilon(mixed, 1e-5) > epsilon(mixed[:2], 1e-5) > epsilon(mixed[:1], 1e-5)


@settings(max_examples=4, deadline=None)
@given(st.integers(2, 40), st.floats(0.3, 8), st.integers(1, 20), st.floats(-9, -2))
def test_more_bins_more_noise_and_fewer_passes_cost_less(bins: int, noise: float, count: int, log_d: float) -> None:
    delta = 10**log_d
    here = epsilon_bounds(passes(bins, noise, count), delta)
    assert 0 <= here.lower <= here.upper
    assert here.upper <= epsilon([(DisjointPass(noise, index), 1) for index in range(count)], delta) * (1 + 1e-9)
    for cheaper in (passes(2 * bins, noise, count), passes(bins, 1.2 * noise, count)):
        assert epsilon_bounds(cheaper, delta).lower <= here.upper
    assert epsilon_bounds(passes(bins, noise, count + 1), delta).upper >= here.lower


@pytest.mark.parametrize(("bins", "participations"), [(10, 3), (9, 3), (7, 6)])
def test_k_of_t_lies_between_the_sum_of_its_releases_and_no_amplification(bins: int, participations: int) -> None:
    bounds = epsilon_bounds(passes(bins, 1.0, 3, participations), 1e-5)
    least = epsilon([(Gaussian(math.sqrt(bins) / participations), 3)], 1e-5)
    assert bounds.lower == pytest.approx(least, rel=1e-6)
    assert bounds.lower <= bounds.upper <= epsilon([(Gaussian(1.0), 3 * participations)], 1e-5)
    if bins % participations == 0:
        blocks = passes(bins // participations, 1.0, 3 * participations)
        assert bounds.upper == pytest.approx(epsilon(blocks, 1e-5), rel=1e-9)


def test_little_noise_is_charged_without_amplification() -> None:
    """Guarantee: infinity where a release had no noise at all."""
    assert epsilon(passes(50, 0.09), 1e-5) == epsilon([(Gaussian(0.09), 1)], 1e-5)
    assert math.isinf(epsilon(passes(50, 0.0), 1e-5))
    assert epsilon(passes(50, 1e7, 3), 1e-5) == 0.0


def test_small_delta_and_many_bins_are_enclosed() -> None:
    for bins, delta in ((20_000, 1e-8), (200, 1e-25)):
        bounds = epsilon_bounds(passes(bins, 1.0, 2), delta)
        assert bounds.error <= 5e-3 * bounds.upper
    with pytest.raises(AccountingError, match="1e-30"):
        epsilon(passes(10, 1.0), 1e-40)


def test_calibration_spends_the_target_and_no_more() -> None:
    def plan(noise: float) -> Composition:
        return passes(40, noise, 3)

    found = calibrate_noise_multiplier(target_epsilon=2.0, target_delta=1e-5, composition=plan)
    assert epsilon(plan(found), 1e-5) <= 2.0
    assert epsilon_bounds(plan(found * 0.998), 1e-5).upper > 2.0


def test_a_budget_admits_the_passes_that_fit() -> None:
    def plan(count: int) -> Composition:
        return passes(40, 1.0, count)

    count = Budget(3.0, 1e-5).most(plan, 50)
    assert epsilon(plan(count), 1e-5) <= 3.0 < epsilon(plan(count + 1), 1e-5)


def test_zero_out_is_the_same_and_other_relations_are_refused_by_name() -> None:
    plan = passes(10, 1.0, 2)
    assert epsilon_under(plan, 1e-5, "zero-out") == epsilon_bounds(plan, 1e-5)
    with pytest.raises(AccountingError, match=r"balls in bins.*replace-one"):
        epsilon_under(plan, 1e-5, "replace-one")
    with pytest.raises(AccountingError, match=r"balls in bins.*groups"):
        epsilon_under(plan, 1e-5, "add/remove-one", group_size=2)


def test_other_accountants_bound_it_or_refuse() -> None:
    plan = passes(10, 1.0, 2)
    with pytest.raises(AccountingError, match="balls in bins"):
        epsilon(plan, 1e-5, "pld")
    assert epsilon(plan, 1e-5, "rdp") >= epsilon([(Gaussian(1.0), 2)], 1e-5)
    assert set(cross_check(plan, 1e-5)) == {"saddle-point", "rdp"}
    with pytest.raises(AccountingError, match="filter"):
        PrivacyFilter(3.0, 1e-5).rule(RandomAllocation(10, 1.0, 0))
    assert selection_epsilon(plan, 1e-5, 3) == selection_epsilon([(Gaussian(1.0), 2)], 1e-5, 3)  # without amplification
    with pytest.raises(AccountingError, match="balls in bins"):
        renyi_divergence(plan, 2)


def test_an_accountant_that_does_not_know_passes_is_asked_without_amplification() -> None:
    asked: list[NormalForm] = []

    def note(form: NormalForm, delta: float) -> EpsilonBounds:
        asked.append(form)
        return EpsilonBounds(1.0, 9.0)

    stranger = Accountant("stranger", note, 0.0, False, True, "of somebody else's")
    assert _asked(stranger, normal_form(passes(10, 2.0, 3)), 1e-5) == EpsilonBounds(0.0, 9.0)
    assert asked == [normal_form([(Gaussian(2.0), 3)])]


def test_other_figures_are_read_from_the_same_curve() -> None:
    plan = passes(20, 1.0, 2)
    assert 0 < trade_off_curve(plan, [0.1])[0] < 0.9
    assert gaussian_mu(plan) <= math.sqrt(2)
    assert zero_concentrated(plan) == pytest.approx(1.0)
    assert math.exp(log_delta(math.sqrt(2), 0.5)) > delta_bounds(plan, 0.5).upper


def test_the_guarantee_says_how_records_were_drawn_and_how_sure_epsilon_is() -> None:
    found = guarantee([(RandomAllocation(50, 1.0, index), 50) for index in range(2)], 1e-5)
    assert "every record in one random step of the 50 of each of 2 passes (balls in bins)" in str(found)
    assert "add/remove-one" in str(found)
    assert found.numerical_error is not None
    assert 0 < found.numerical_error < 0.01 * found.epsilon
    assert "3 random steps" in str(guarantee(passes(50, 1.0, 1, 3), 1e-5))


def test_an_event_says_how_often_it_charges_a_record_to_take_part() -> None:
    event = RandomAllocation(50, 1.0, 2, 3)
    assert (event.charged_rate, event.data_pass, event.poisson_rate) == (0.06, 2, None)


@pytest.mark.parametrize("values", [(0, 1.0, 0), (10, -1.0, 0), (10, 1.0, -1), (10, 1.0, 0, 0), (10, 1.0, 0, 11)])
def test_values_out_of_range_are_refused(values: tuple[int, float, int]) -> None:
    with pytest.raises(InvalidArgumentError):
        RandomAllocation(*values)


def test_an_event_of_somebody_elses_cannot_charge_more_steps_than_a_pass_has() -> None:
    with pytest.raises(AccountingError, match="2 of 1"):
        Costs().add_step_of_allocation(1, 2, 0, 1.0)
