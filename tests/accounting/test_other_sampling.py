"""Truncated Poisson, fixed-size and balls-in-bins sampling: true bounds, or a refusal that says why."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from hushgrad.accounting import (
    BallsInBins,
    Budget,
    DisjointPass,
    FixedSizeSampled,
    Gaussian,
    PoissonSampled,
    TruncatedPoisson,
    calibrate_noise_multiplier,
    epsilon,
    epsilon_bounds,
    guarantee,
)
from hushgrad.accounting.allocation.fixed_size import fixed_size_losses
from hushgrad.accounting.allocation.one_pass import delta_of
from hushgrad.accounting.composition import NormalForm, normal_form
from hushgrad.accounting.gaussian import log_delta
from hushgrad.accounting.pld.discretization import one_step_of_fixed_size
from hushgrad.accounting.risk import gaussian_mu
from hushgrad.accounting.selection import selection_epsilon
from hushgrad.accounting.truncation import (
    Rung,
    crowded,
    cut_steps,
    displaced,
    epsilon_with_truncation,
    ladder,
    least_with_truncation,
    shares_of_delta,
)
from hushgrad.errors import AccountingError, InvalidArgumentError
from hushgrad.sampling import TruncatedPoissonSampling

# Truncated Poisson ------------------------------------------------------------------------------------------


def test_room_for_every_draw_costs_nothing_and_no_room_half_the_noise_at_the_rate_of_what_is_kept() -> None:
    plain = epsilon([(PoissonSampled(0.01, 1.0), 1000)], 1e-6)
    roomy = epsilon([(TruncatedPoisson(0.01, 1.0, 10_000, 200), 1000)], 1e-6)
    assert plain <= roomy <= plain * 1.0001
    tight = epsilon([(TruncatedPoisson(0.5, 1.0, 100, 1), 100)], 1e-6)  # one of about fifty is kept
    halved = epsilon([(PoissonSampled(0.01, 0.5), 100)], 1e-6)
    assert halved * 0.999 <= tight <= halved * 1.01


@pytest.mark.parametrize(
    ("rate", "noise", "population", "steps", "delta"),
    [
        (0.01, 1.0, 10_000, 1000, 1e-5),
        (256 / 60_000, 1.1, 60_000, 3500, 1e-5),
        (0.05, 2.0, 2000, 500, 1e-6),
        (0.1, 3.0, 500, 2000, 1e-5),
        (0.01, 1.0, 10_000, 1000, 1e-9),
    ],
)
def test_room_of_five_standard_deviations_costs_less_than_a_thousandth_of_epsilon(
    rate: float, noise: float, population: int, steps: int, delta: float
) -> None:
    most = TruncatedPoissonSampling.with_room(rate, population).max_batch_size
    plain = epsilon([(PoissonSampled(rate, noise), steps)], delta)
    truncated = epsilon([(TruncatedPoisson(rate, noise, population, most), steps)], delta)
    assert plain <= truncated <= plain * 1.001


def test_calibration_and_budgets_end_on_the_private_side_of_truncated_steps() -> None:
    def plan(sigma: float, steps: int) -> list[tuple[TruncatedPoisson, int]]:
        return [(TruncatedPoisson(0.01, sigma, 60_000, 723), steps)]

    sigma = calibrate_noise_multiplier(target_epsilon=3.0, target_delta=1e-5, composition=lambda s: plan(s, 2000))
    assert 2.999 < epsilon(plan(sigma, 2000), 1e-5) <= 3.0
    steps = Budget(3.0, 1e-5).most(lambda count: plan(sigma, count))
    assert steps >= 2000
    assert epsilon(plan(sigma, steps + 1), 1e-5) > 3.0


def test_epsilon_falls_with_the_room() -> None:
    values = [epsilon([(TruncatedPoisson(0.01, 1.0, 10_000, most), 500)], 1e-6) for most in (120, 130, 140, 150)]
    assert values == sorted(values, reverse=True)


@pytest.mark.parametrize("accountant", ["saddle-point", "pld", "rdp"])
def test_every_accountant_charges_the_truncated_steps(accountant: str) -> None:
    plan = [(TruncatedPoisson(0.05, 2.0, 2000, 140), 50)]
    bounds = epsilon_bounds(plan, 1e-6, accountant)
    assert bounds.upper > epsilon([(PoissonSampled(0.05, 2.0), 50)], 1e-6, accountant)
    assert bounds.lower <= bounds.upper


@pytest.mark.parametrize("most", [125, 140, 150])
def test_shares_of_delta_and_the_chance_to_pass_the_last_rung_sum_to_delta(most: int) -> None:
    """Guarantee: an upper bound, as `epsilon` is one: the rungs' shares of δ, weighted by their probabilities, and the
    chance to pass the last rung sum to at most `delta`.

    Guarantee: the probabilities are upper bounds.
    """
    delta = 1e-6
    form = normal_form([(TruncatedPoisson(0.01, 1.0, 10_000, most), 500)])
    kinds = cut_steps(form)[0]
    assert kinds[0].is_dearer
    rungs, beyond = ladder(form, kinds, delta)
    probability = kinds[0].probability
    assert beyond <= 1e-4 * delta
    passed = 0
    for rung in rungs:
        steps = {(rate, noise): count for rate, noise, count in rung.form.sampled}
        second = steps.get((kinds[0].rate, kinds[0].noise_multiplier), 0)
        assert sum(steps.values()) == 500
        assert rung.pure == second * kinds[0].pure
        exactly = binom.sf(passed - 1, 500, probability) - binom.sf(second, 500, probability)
        assert exactly <= rung.probability <= exactly * (1 + 1e-6)
        passed = second + 1
    assert binom.sf(passed - 1, 500, probability) <= beyond

    asked: list[tuple[NormalForm, float]] = []

    def saddle_point(form: NormalForm, at: float) -> float:
        asked.append((form, at))
        return epsilon_bounds([(PoissonSampled(rate, noise), n) for rate, noise, n in form.sampled], at).upper

    shares = shares_of_delta(rungs, delta - beyond, saddle_point)
    assert sum(rung.probability * share for rung, share in zip(rungs, shares, strict=True)) <= delta - beyond
    asked.clear()
    found = epsilon_with_truncation(form, delta, saddle_point)
    assert found == epsilon([(TruncatedPoisson(0.01, 1.0, 10_000, most), 500)], delta)
    assert {(rung.form, share) for rung, share in zip(rungs, shares, strict=True)} <= set(asked)


@pytest.mark.parametrize("most", [50, 80, 100, 125, 140])
def test_cells_hold_every_number_of_displaced_steps_with_at_least_its_probability(most: int) -> None:
    """Guarantee: the probabilities are upper bounds. Whichever of its two sizes the common data set has."""
    delta = 1e-6
    form = normal_form([(TruncatedPoisson(0.01, 1.0, 10_000, most), 500)])
    kinds = cut_steps(form)[-1]
    assert not kinds[0].is_dearer
    rungs, beyond = ladder(form, kinds, delta)
    assert beyond <= 1e-4 * delta
    for common in (9_999, 10_000):
        probability = float(binom.sf(most - 1, common, 0.01))
        left = 1.0
        for rung in rungs:
            steps = {(rate, noise): count for rate, noise, count in rung.form.sampled}
            second = steps.get((kinds[0].rate, kinds[0].noise_multiplier), 0)
            first = steps.get((0.01, 1.0), 0)
            inside = float(binom.cdf(second, 500, probability) - binom.cdf(500 - first - 1, 500, probability))
            assert inside <= rung.probability * (1 + 1e-6)
            left -= inside
        assert left <= beyond + 1e-12


def test_different_events_are_charged_as_their_dearest() -> None:
    steps = [(TruncatedPoisson(0.01, sigma, 10_000, 150), 250) for sigma in (0.9, 1.0, 1.1, 1.2)]
    mixed = epsilon(steps, 1e-6)
    assert mixed >= epsilon([(PoissonSampled(0.01, event.noise_multiplier), 250) for event, _ in steps], 1e-6)
    assert mixed <= epsilon([(TruncatedPoisson(0.01, 0.9, 10_000, 150), 1000)], 1e-6)
    rungs, _ = ladder(form := normal_form(steps), cut_steps(form)[0], 1e-6)
    assert all(isinstance(rung, Rung) and rung.form.truncated == () for rung in rungs)
    numbers = [sum(count for *_, count in rung.form.sampled) for rung in rungs]
    assert numbers[0] == 1000
    assert numbers == sorted(set(numbers))


def _step(rate: float, noise: float, others: int, most: int, other: float) -> tuple[np.ndarray, np.ndarray, float]:  # type: ignore[type-arg]
    """The densities of one step's sum with and without a record of gradient +1; the others' gradients are `other`."""
    x = np.linspace(-8 - others * abs(other), 9 + others * abs(other), 20_001)

    def density(sums: dict[float, float]) -> np.ndarray:  # type: ignore[type-arg]
        return sum(w * np.exp(-(((x - s) / noise) ** 2) / 2) for s, w in sums.items()) / (
            noise * math.sqrt(2 * math.pi)
        )

    without: dict[float, float] = {}
    present: dict[float, float] = {}

    def add(to: dict[float, float], at: float, weight: float) -> None:
        to[at] = to.get(at, 0) + weight

    for drawn in range(others + 1):
        weight = float(binom.pmf(drawn, others, rate))
        kept = min(drawn, most)
        add(without, other * kept, weight)
        add(present, other * kept, weight * (1 - rate))
        stays = 1.0 if drawn < most else most / (drawn + 1)
        add(present, 1 + other * (drawn if drawn < most else most - 1), weight * rate * stays)
        add(present, other * kept, weight * rate * (1 - stays))
    return density(present), density(without), float(x[1] - x[0])


def _delta(p: np.ndarray, q: np.ndarray, at: float, width: float) -> float:  # type: ignore[type-arg]
    """δ at ε = `at` of two densities on a grid of this width."""
    return float(np.maximum(p - math.exp(at) * q, 0).sum() * width)


SINGLE = [(0.3, 6, 2), (0.1, 12, 3), (0.5, 8, 6), (0.05, 20, 1), (0.2, 5, 5)]
"""Rate, records in common, largest batch of one step with noise 0.8."""


@pytest.mark.parametrize("other", [-1.0, 0.0, 1.0, 0.4])
@pytest.mark.parametrize(("rate", "others", "most"), SINGLE)
def test_one_truncated_step_is_dominated_by_both_bounds(rate: float, others: int, most: int, other: float) -> None:
    """The step itself, exactly: the density of the sum under each neighbour is a mixture over how many were drawn.

    δ of it lies below the mean of δ of the two kinds of step, at every ε and in both directions.
    """
    noise = 0.8
    present, without, width = _step(rate, noise, others, most, other)

    def plain(r: float, sigma: float, at: float, remove: bool) -> float:
        x = np.linspace(-12, 13, 20_001)
        zero, one = (np.exp(-(((x - s) / sigma) ** 2) / 2) / (sigma * math.sqrt(2 * math.pi)) for s in (0, 1))
        mixed = (1 - r) * zero + r * one
        pair = (mixed, zero) if remove else (zero, mixed)
        return float(np.maximum(pair[0] - math.exp(at) * pair[1], 0).sum() * (x[1] - x[0]))

    # `others` records are in common: all but one of the population, or all of it.
    kinds = [kind(rate, noise, others + more, most) for kind in (displaced, crowded) for more in (0, 1)]
    assert kinds[2] is not None or most == 1
    for at in (-1.0, -0.2, 0.0, 0.05, 0.3, 1.0, 2.0):
        for remove, (p, q) in ((True, (present, without)), (False, (without, present))):
            exact = _delta(p, q, at, width)
            for kind in kinds:
                if kind is None:
                    continue
                second = plain(kind.rate, kind.noise_multiplier, at - kind.pure, remove)
                first = plain(rate, noise, at, remove)
                shares = (kind.probability,) if kind.is_dearer else (kind.least, kind.probability)
                assert exact <= max((1 - share) * first + share * second for share in shares) + 1e-9


@pytest.mark.parametrize(
    ("rate", "others", "most"),
    [pytest.param(*case, marks=() if case == (0.2, 5, 5) else pytest.mark.slow) for case in SINGLE],
)
def test_epsilon_of_one_truncated_step_holds_for_its_exact_densities(rate: float, others: int, most: int) -> None:
    event = TruncatedPoisson(rate, 0.8, others, most)
    for share in (1e-4, 1e-2, 0.05):
        at = epsilon([(event, 1)], share)
        for other in (-1.0, 0.0, 1.0, 0.4):
            present, without, width = _step(rate, 0.8, others, most, other)
            found = max(_delta(present, without, at, width), _delta(without, present, at, width))
            assert found <= share * (1 + 1e-6)


CUT = {
    # rate, records, largest batch, noise, steps, δ: how far above the exact ε of the worst gradients ε may lie
    "half of the steps": (0.3, 12, 4, 2.0, 20, 1e-5, 2.2),
    "nearly all steps": (0.5, 12, 2, 2.0, 20, 1e-5, 1.05),
    "few steps": (0.1, 20, 5, 2.0, 20, 1e-5, 2.3),
    "one record of many": (0.3, 30, 1, 3.0, 10, 1e-4, 1.05),
}


def exact_epsilon(rate: float, others: int, most: int, noise: float, steps: int, delta: float) -> float:
    """Return ε of truncated steps, exactly up to a grid of losses, where all other gradients are opposite to x's.

    The losses of one step are enumerated from its two densities, rounded down, and added up by convolution. It shares
    nothing with the accountants.
    """
    found = 0.0
    present, without, width = _step(rate, noise, others, most, -1.0)
    grid = 1e-3
    for p, q in ((present, without), (without, present)):
        usual = p * width > 1e-18
        losses = np.floor(np.log(p[usual] / q[usual]) / grid).astype(int)
        masses = np.zeros(losses.max() - losses.min() + 1)
        np.add.at(masses, losses - losses.min(), p[usual] * width)
        length = 1 << (steps * len(masses)).bit_length()
        many = np.fft.irfft(np.fft.rfft(masses, length) ** steps, length)
        at = (np.arange(length) + steps * losses.min()) * grid

        def of(epsilon: float, many: np.ndarray = many, at: np.ndarray = at) -> float:  # type: ignore[type-arg]
            beyond = at > epsilon
            return float((many[beyond] * -np.expm1(epsilon - at[beyond])).sum())

        low, high = 0.0, 60.0
        while high - low > 1e-4:
            middle = (low + high) / 2
            low, high = (middle, high) if of(middle) > delta else (low, middle)
        found = max(found, low)
    return found


@pytest.mark.parametrize("most", [1, 2, 4, 6, 12])
def test_least_with_truncation_holds_below_the_exact_epsilon_however_often_steps_are_cut(most: int) -> None:
    """Guarantee: a lower bound, as `least` is one.

    `least` is here the exact ε of plain steps, found as that of the truncated ones is, so that nothing but the
    correction for cut steps can put the answer too high. Without any cut it is that ε itself.
    """
    rate, others, noise, steps, delta = 0.1, 12, 2.0, 10, 1e-3

    def least(form: NormalForm, at: float) -> float:
        assert form.truncated == ()
        assert form.sampled == ((rate, noise, steps),)
        return exact_epsilon(rate, others, others + 1, noise, steps, at)

    form = normal_form([(TruncatedPoisson(rate, noise, others, most), steps)])
    plain = exact_epsilon(rate, others, others + 1, noise, steps, delta)
    found = least_with_truncation(form, delta, least)
    assert found <= plain
    assert found <= exact_epsilon(rate, others, most, noise, steps, delta) + 1e-2
    assert found > 0 or most < 6  # where cuts are frequent nothing follows
    assert found == plain or most < 12


@pytest.mark.parametrize("name", CUT)
def test_truncated_steps_cost_at_least_what_an_enumeration_of_their_losses_finds_and_not_much_more(name: str) -> None:
    rate, population, most, noise, steps, delta, above = CUT[name]
    exact = exact_epsilon(rate, population - 1, most, noise, steps, delta)
    bounds = epsilon_bounds([(TruncatedPoisson(rate, noise, population, most), steps)], delta)
    assert bounds.lower <= bounds.upper
    assert exact <= bounds.upper <= above * exact
    assert bounds.lower <= exact_epsilon(rate, population, most, noise, steps, delta) + 0.03


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


@pytest.mark.parametrize(
    ("size", "population", "noise", "steps"),
    [(5, 100, 1.0, 10), (64, 1000, 1.5, 200), (256, 60_000, 2.2, 3500), (3, 1000, 0.5, 100), (5, 10, 3.0, 1)],
)
def test_the_saddle_point_accountant_charges_fixed_sizes_as_the_grid_does(
    size: int, population: int, noise: float, steps: int
) -> None:
    """Guarantee: δ(ε), also of a composition with it, is at least that of the step. `pld`, from another program's
    composition and another discretization, is an upper bound, too; both are within some 1e-4 of the truth."""
    plan = [(FixedSizeSampled(size, population, noise), steps)]
    bounds = epsilon_bounds(plan, 1e-5)
    assert bounds.lower == 0  # none is known
    assert bounds.upper == pytest.approx(epsilon(plan, 1e-5, "pld"), rel=2e-4)
    assert guarantee(plan, 1e-5).numerical_error is None
    assert epsilon(plan, 1e-25) <= epsilon(plan, 1e-25, "rdp")


@pytest.mark.parametrize(("rate", "noise"), [(0.01, 0.5), (0.3, 1.0), (0.9, 4.0), (1e-6, 0.2)])
def test_losses_of_a_fixed_size_step_are_those_of_its_closed_form(rate: float, noise: float) -> None:
    """Guarantee: δ(ε), also of a composition with it, is at least that of the step, at every ε >= 0.

    δ(ε) = q·δ_G(log(1 + (e^ε − 1)/q)) (Balle, Barthe & Gaboardi, 2018).
    """
    atoms = fixed_size_losses(rate, noise, 1e-14)
    weights = np.exp(atoms.log_weights)
    assert weights.sum() + atoms.infinite == pytest.approx(1, abs=1e-6)
    for at in (0.0, 0.1, 1.0, 3.0):
        exact = rate * math.exp(log_delta(1 / noise, math.log1p(math.expm1(at) / rate)))
        assert exact <= delta_of(atoms, at) * (1 + 1e-9) + 1e-30
        assert delta_of(atoms, at) <= exact * (1 + 1e-3) + 1e-12


def test_fixed_size_is_of_another_relation_than_poisson() -> None:
    with pytest.raises(AccountingError, match="replace-one"):
        epsilon([(FixedSizeSampled(5, 100, 1.0), 10), (PoissonSampled(0.1, 1.0), 1)], 1e-5, "pld")


# Balls in bins ----------------------------------------------------------------------------------------------


def test_the_first_kind_of_balls_in_bins_keeps_its_charge() -> None:
    plan = [(BallsInBins(50, 2.0, index), 50) for index in range(3)]
    assert epsilon(plan, 1e-5) == epsilon([(DisjointPass(2.0, index), 1) for index in range(3)], 1e-5)
    sentence = str(guarantee(plan, 1e-5))
    assert "without amplification" in sentence
    assert "zero-out" in sentence


# All of them ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("event", [TruncatedPoisson(0.1, 1.0, 100, 20), FixedSizeSampled(5, 100, 1.0)])
def test_what_is_not_computed_is_refused(event: TruncatedPoisson | FixedSizeSampled) -> None:
    with pytest.raises(AccountingError):
        gaussian_mu([(event, 3)])
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
    found = guarantee([(event, 200)], 1e-5)
    assert found.sampling != "nothing was drawn yet"
    assert found.adjacency == event.adjacency
