"""Truncated Poisson, fixed-size and balls-in-bins sampling: true bounds, or a refusal that says why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from hushgrad.accounting import (
    BallsInBins,
    DisjointPass,
    FixedSizeSampled,
    Gaussian,
    PoissonSampled,
    TruncatedPoisson,
    epsilon,
    epsilon_bounds,
    guarantee,
)
from hushgrad.accounting.composition import normal_form
from hushgrad.accounting.discretization import one_step_of_fixed_size
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.risk import membership_advantage
from hushgrad.accounting.selection import selection_epsilon
from hushgrad.accounting.truncation import without_truncation
from hushgrad.errors import AccountingError, InvalidArgumentError

# Truncated Poisson ------------------------------------------------------------------------------------------


def test_room_for_every_draw_costs_nothing_and_no_room_what_half_the_noise_costs() -> None:
    plain = epsilon([(PoissonSampled(0.01, 1.0), 1000)], 1e-6)
    roomy = epsilon([(TruncatedPoisson(0.01, 1.0, 10_000, 200), 1000)], 1e-6)
    assert plain <= roomy <= plain * 1.0005
    tight = epsilon([(TruncatedPoisson(0.01, 1.0, 10_000, 1), 1000)], 1e-6)
    halved = epsilon([(PoissonSampled(0.01, 0.5), 1000)], 1e-6 * (1 - 1e-3))
    assert tight == pytest.approx(halved, rel=1e-3)


def test_epsilon_falls_with_the_room() -> None:
    values = [epsilon([(TruncatedPoisson(0.01, 1.0, 10_000, most), 500)], 1e-6) for most in (120, 130, 140, 150)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("accountant", ["saddle-point", "pld", "rdp"])
def test_every_accountant_charges_the_truncated_steps(accountant: str) -> None:
    plan = [(TruncatedPoisson(0.01, 1.0, 10_000, 130), 500)]
    bounds = epsilon_bounds(plan, 1e-6, accountant)
    assert bounds.upper > epsilon([(PoissonSampled(0.01, 1.0), 500)], 1e-6, accountant)
    assert bounds.lower <= bounds.upper


def test_more_truncated_steps_than_are_counted_are_less_likely_than_the_slack() -> None:
    """Guarantee: an upper bound: truncated steps are counted so that more of them are less likely than a thousandth of
    `delta`, which is taken from it."""
    form = normal_form([(TruncatedPoisson(0.01, 1.0, 10_000, 130), 500)])
    plain, remaining = without_truncation(form, 1e-6)
    steps = {noise: count for _, noise, count in plain.sampled}
    assert sum(steps.values()) == 500
    assert binom.sf(steps[0.5], 500, binom.sf(129, 10_000, 0.01)) <= 1e-9
    assert remaining == pytest.approx(1e-6 * (1 - 1e-3))


def test_one_truncated_step_is_dominated_by_the_bound() -> None:
    """The step itself, simulated exactly: 6 records of gradient −1 in D, and one of +1 more in D'; B = 2, q = 0.3.

    The density of the sum under each is a mixture over how many were drawn; δ is integrated on a grid.
    """
    rate, noise, others, most = 0.3, 1.0, 6, 2
    x = np.linspace(-14, 12, 26_001)

    def density(sums: dict[float, float]) -> np.ndarray:  # type: ignore[type-arg]
        return sum(w * np.exp(-(((x - s) / noise) ** 2) / 2) for s, w in sums.items()) / (
            noise * math.sqrt(2 * math.pi)
        )

    without: dict[float, float] = {}
    present: dict[float, float] = {}
    for drawn in range(others + 1):
        weight = float(binom.pmf(drawn, others, rate))
        kept = min(drawn, most)
        without[-kept] = without.get(-kept, 0) + weight
        present[-kept] = present.get(-kept, 0) + weight * (1 - rate)
        stays = 1.0 if drawn < most else most / (drawn + 1)
        with_it = 1 - (drawn if drawn < most else most - 1)
        present[with_it] = present.get(with_it, 0) + weight * rate * stays
        present[-kept] += weight * rate * (1 - stays)
    p, q = density(present), density(without)
    plan = [(TruncatedPoisson(rate, noise, others, most), 1)]
    for at in (1e-3, 1e-2, 0.05):
        bound = epsilon(plan, at)
        for a, b in ((p, q), (q, p)):
            delta = float(np.maximum(a - math.exp(bound) * b, 0).sum() * (x[1] - x[0]))
            assert delta <= at


# Fixed size -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("rate", "noise"), [(0.05, 1.0), (0.3, 0.7), (0.01, 2.0)])
def test_one_step_of_a_fixed_size_is_its_closed_form(rate: float, noise: float) -> None:
    """Guarantee: an upper bound on δ(ε) at every ε, and exact to rounding where ε is a multiple of `interval`.

    δ(ε) = q·δ_G(log(1 + (e^ε − 1)/q)) (Balle, Barthe & Gaboardi, 2018), for ε >= 0.
    """
    distribution = one_step_of_fixed_size(rate, noise, 1e-3)
    for at in (0.0, 0.002, 0.05, 0.4, 1.0, 0.0123456):
        exact = rate * math.exp(log_delta(1 / noise, math.log1p(math.expm1(at) / rate)))
        found = float(distribution.get_delta_for_epsilon(at))
        assert found >= exact * (1 - 1e-9) - 1e-15
        if round(at * 1000) == at * 1000:
            assert found == pytest.approx(exact, rel=1e-6, abs=1e-14)


def test_masses_of_a_fixed_size_step_are_probabilities_that_sum_to_one() -> None:
    distribution = one_step_of_fixed_size(0.1, 0.8, 1e-3)
    masses = distribution._pmf_remove._probs
    assert masses.min() >= 0
    assert masses.sum() + distribution._pmf_remove._infinity_mass == pytest.approx(1, abs=1e-12)


def test_fixed_size_steps_lie_between_poisson_sampling_and_renyi_bounds() -> None:
    """The lower end is Poisson sampling of the same pair, which differs from it only below a loss of 0."""
    size, population, noise, steps = 5, 100, 1.5, 40
    plan = [(FixedSizeSampled(size, population, noise), steps)]
    sharp, loose = epsilon(plan, 1e-5, "pld"), epsilon(plan, 1e-5, "rdp")
    poisson = epsilon([(PoissonSampled(size / population, noise / 2), steps)], 1e-5, "pld")
    assert poisson * 0.98 <= sharp < loose
    assert sharp == pytest.approx(poisson, rel=0.05)


def test_a_batch_of_everything_is_a_gaussian_release_of_twice_the_sensitivity() -> None:
    assert epsilon([(FixedSizeSampled(10, 10, 4.0), 3)], 1e-5) == epsilon([(Gaussian(2.0), 3)], 1e-5)


def test_the_saddle_point_accountant_refuses_fixed_sizes_with_the_cure() -> None:
    with pytest.raises(AccountingError, match="pld"):
        epsilon([(FixedSizeSampled(5, 100, 1.0), 10)], 1e-5)


def test_fixed_size_is_of_another_relation_than_poisson() -> None:
    with pytest.raises(AccountingError, match="replace-one"):
        epsilon([(FixedSizeSampled(5, 100, 1.0), 10), (PoissonSampled(0.1, 1.0), 1)], 1e-5, "pld")


# Balls in bins ----------------------------------------------------------------------------------------------


def test_balls_in_bins_cost_what_a_pass_costs_and_say_why() -> None:
    plan = [(BallsInBins(50, 2.0, index), 50) for index in range(3)]
    assert epsilon(plan, 1e-5) == epsilon([(DisjointPass(2.0, index), 1) for index in range(3)], 1e-5)
    sentence = str(guarantee(plan, 1e-5))
    assert "without amplification: no bound" in sentence
    assert "zero-out" in sentence


# All of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [TruncatedPoisson(0.1, 1.0, 100, 20), FixedSizeSampled(5, 100, 1.0)])
def test_what_is_not_computed_is_refused(event: TruncatedPoisson | FixedSizeSampled) -> None:
    with pytest.raises(AccountingError):
        membership_advantage([(event, 3)])
    with pytest.raises(AccountingError):
        selection_epsilon([(event, 3)], 1e-5, 10)


@pytest.mark.parametrize("event", [TruncatedPoisson(0.1, 0.0, 100, 20), FixedSizeSampled(5, 100, 0.0)])
def test_no_noise_is_infinite(event: TruncatedPoisson | FixedSizeSampled) -> None:
    assert epsilon([(event, 1)], 1e-5) == math.inf


@pytest.mark.parametrize(
    "make",
    [
        lambda: TruncatedPoisson(1.1, 1.0, 10, 5),
        lambda: TruncatedPoisson(0.1, 1.0, 0, 5),
        lambda: TruncatedPoisson(0.1, 1.0, 10, 0),
        lambda: FixedSizeSampled(11, 10, 1.0),
        lambda: FixedSizeSampled(1, 10, -1.0),
        lambda: BallsInBins(0, 1.0, 0),
    ],
)
def test_values_out_of_range_are_refused(make) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(InvalidArgumentError):
        make()


@pytest.mark.parametrize(
    "event",
    [TruncatedPoisson(0.1, 1.0, 100, 20), FixedSizeSampled(5, 100, 1.0), BallsInBins(7, 1.0, 2)],
    ids=lambda event: event.type,
)
def test_the_sentence_says_how_records_were_drawn(event) -> None:  # type: ignore[no-untyped-def]
    accountant = "pld" if isinstance(event, FixedSizeSampled) else "saddle-point"
    found = guarantee([(event, 200)], 1e-5, accountant)
    assert found.sampling != "nothing was drawn yet"
    assert found.adjacency == event.adjacency
