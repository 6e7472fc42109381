"""The saddle-point accountant against exact formulas, other methods, high precision and simulation."""

from __future__ import annotations

import json
import math
from pathlib import Path

import mpmath
import numpy as np
import pytest
from dp_accounting.pld import privacy_loss_distribution
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.integrate import quad
from scipy.special import logsumexp
from scipy.stats import norm

from hushgrad.accounting import Gaussian, PoissonSampled, epsilon_bounds
from hushgrad.accounting.composition import normal_form
from hushgrad.accounting.gaussian import gaussian_epsilon, log_delta
from hushgrad.accounting.saddle_point import accountant, search
from hushgrad.accounting.saddle_point.accountant import _one_step_delta, delta_bounds
from hushgrad.accounting.saddle_point.accountant import epsilon_bounds as bounds_of_form
from hushgrad.accounting.saddle_point.contour import Contour, saddle_point
from hushgrad.accounting.saddle_point.loss_sum import LossSum
from hushgrad.accounting.saddle_point.step_measure import (
    ADD,
    REMOVE,
    SampledStep,
    measure,
    measured,
    needed_panels,
    quadrature_error,
)
from hushgrad.errors import AccountingError

ROWS = json.loads((Path(__file__).parents[1] / "golden" / "accounting.json").read_text())["rows"]
WRONG_ROW = "tiny q=1e-6 T=1e6 sigma=1"
"""The reference says 0.004183 for this row. At that ε δ is 2.6e-7 and not 1e-10: `test_the_reference_is_wrong_...`."""


def _bounds(rate: float, noise: float, steps: int, delta: float):  # type: ignore[no-untyped-def]
    return epsilon_bounds([(PoissonSampled(rate, noise), steps)], delta)


@pytest.mark.parametrize("row", [row for row in ROWS if row["name"] != WRONG_ROW], ids=lambda row: row["name"])
def test_every_row_of_the_reference_is_met_and_never_undercut(row: dict) -> None:  # type: ignore[type-arg]
    bounds = _bounds(row["sampling_rate"], row["noise_multiplier"], row["steps"], row["delta"])
    assert bounds.upper == pytest.approx(row["epsilon"], rel=1e-6, abs=1e-12)
    assert bounds.upper >= row["epsilon"] - bounds.error
    assert bounds.error <= 1e-6 * max(bounds.upper, 1e-12)


def _mpmath_delta(rate: float, noise: float, steps: int, direction: str, epsilons: list[str], c: int) -> list[float]:
    """δ by the same contour integral at a fixed c with 40 digits, the trapezoid rule in both x and u."""
    with mpmath.workdps(40):
        q, sigma = mpmath.mpf(str(rate)), mpmath.mpf(str(noise))
        spacing = sigma / 10
        terms = []
        for i in range(-130, 130 + int(10 * (c + 2) / noise) * (direction == REMOVE)):
            x = i * spacing
            density = mpmath.exp(-((x / sigma) ** 2) / 2) / (sigma * mpmath.sqrt(2 * mpmath.pi)) * spacing
            ratio = 1 - q + q * mpmath.exp((2 * x - 1) / (2 * sigma**2))
            terms.append((density * ratio, mpmath.log(ratio)) if direction == REMOVE else (density, -mpmath.log(ratio)))
        h = 2 * mpmath.pi * c / 120
        turns = [mpmath.expj(h * loss) for _, loss in terms]
        current = [weight * mpmath.exp(c * loss) for weight, loss in terms]
        sums, k = [mpmath.mpf(0)] * len(epsilons), 0
        while True:
            z = mpmath.mpc(c, h * k)
            value = mpmath.exp(steps * mpmath.log(mpmath.fsum(current))) / (z * (z + 1))
            for i, epsilon in enumerate(epsilons):
                sums[i] += (value * mpmath.exp(-z * mpmath.mpf(epsilon))).real / (1 if k else 2)
            if k and abs(value) < mpmath.mpf(10) ** -26:
                return [float(total * h / mpmath.pi) for total in sums]
            current = [a * b for a, b in zip(current, turns, strict=True)]
            k += 1


def test_the_reference_is_wrong_for_a_million_steps_at_rate_1e_6() -> None:
    """With 40 digits: at the reference's 0.004183 δ is 2.4e-7 in the direction "add" alone, not 1e-10."""
    ours = _bounds(1e-6, 1.0, 10**6, 1e-10)
    at_reference, below, at_ours = _mpmath_delta(
        1e-6, 1.0, 10**6, ADD, ["0.004183447128164763", str(ours.upper * 0.999), str(ours.upper)], 300
    )
    assert at_reference == pytest.approx(2.407920847e-7, rel=1e-6)
    assert at_ours <= 1e-10 < at_reference
    assert at_ours < below
    assert ours.error < 1e-6 * ours.upper


def test_a_simulation_confirms_the_corrected_row() -> None:
    """Importance sampling, 500 draws of 10⁶ steps: δ at our ε is 1e-10, far from the reference's claim.

    Fixed key. The estimate's standard error is below 15%, and the test allows 50%: false alarm below 1e-3.
    """
    assert _simulated(1e-6, 1.0, 10**6, _bounds(1e-6, 1.0, 10**6, 1e-10).upper, 2400.0, 500) == pytest.approx(
        1e-10, rel=0.5
    )
    assert _simulated(1e-6, 1.0, 10**6, 0.004183447128164763, 2400.0, 300) > 1e-8


def _simulated(rate: float, noise: float, steps: int, epsilon: float, tilt: float, draws: int) -> float:
    """δ in the direction "remove" by importance sampling: x is drawn under the tilt e^{tilt·L}, from a fine table."""
    random = np.random.default_rng(20240611)
    x = np.arange(-9 * noise, 1 + 9 * noise, noise / 4000)
    loss = np.logaddexp(math.log1p(-rate), math.log(rate) + (2 * x - 1) / (2 * noise**2))
    log_weights = -((x / noise) ** 2) / 2 - math.log(4000 * math.sqrt(2 * math.pi)) + loss + tilt * loss
    cumulant = float(logsumexp(log_weights))
    cumulative = np.cumsum(np.exp(log_weights - cumulant))
    cumulative /= cumulative[-1]
    # The number of draws of each table entry would be multinomial; by inversion of sorted uniforms it is as exact.
    total = np.empty(draws)
    for i in range(draws):
        counts = random.multinomial(steps, np.diff(cumulative, prepend=0.0))
        total[i] = counts @ loss
    excess = np.maximum(-np.expm1(epsilon - total), 0)
    return float(np.mean(excess * np.exp(steps * cumulant - tilt * total)))


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"),
    [(0.01, 1.0, 1000, 1e-15), (0.001, 0.7, 10**5, 1e-11), (0.1, 3.0, 500, 1e-12)],
)
def test_simulation_confirms_delta_where_others_lose_the_tail(
    rate: float, noise: float, steps: int, delta: float
) -> None:
    """Importance sampling under the tilt at the saddle point, 1,500 draws with a fixed key.

    The standard error is below 6%; the test allows 30%, a false alarm below 1e-5.
    """
    upper = _bounds(rate, noise, steps, delta).upper
    tilt = saddle_point(LossSum(((SampledStep(rate, noise, REMOVE), steps),), 0.0, 1e-8 * delta), upper)
    assert _simulated(rate, noise, steps, upper, tilt, 1500) == pytest.approx(delta, rel=0.3)


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "direction", "epsilon", "c"),
    [
        (0.01, 1.0, 300, REMOVE, "2.0", 5),
        (0.01, 1.0, 300, ADD, "1.0", 12),
        (0.2, 2.0, 20, REMOVE, "3.5", 5),
        (0.2, 2.0, 20, ADD, "2.0", 8),
    ],
)
def test_forty_digits_agree(rate: float, noise: float, steps: int, direction: str, epsilon: str, c: int) -> None:
    """Guarantee: δ(ε) lies between them, the bounds, and they are close."""
    exact = _mpmath_delta(rate, noise, steps, direction, [epsilon], c)[0]
    found = delta_bounds(normal_form([(PoissonSampled(rate, noise), steps)]), float(epsilon), direction)
    assert found.lower <= exact <= found.upper
    assert found.upper - found.lower <= 1e-6 * exact


@pytest.mark.parametrize("mu", [0.01, 1.0, 8.0])
@pytest.mark.parametrize("delta", [1e-3, 1e-9, 1e-40])
def test_the_contour_of_a_gaussian_release_is_its_exact_curve(mu: float, delta: float) -> None:
    """Guarantee: δ(ε) lies between them, up to what `LossSum.log_decay` and `quadrature_error` name as sampled."""
    epsilon = gaussian_epsilon(mu * mu, delta)
    total = LossSum((), mu * mu, 0.0)
    found = Contour(total, saddle_point(total, epsilon), epsilon, delta).bounds(epsilon)
    exact = math.exp(log_delta(mu, epsilon))
    assert found.lower <= exact * (1 + 1e-12)
    assert exact * (1 - 1e-12) <= found.upper <= exact * (1 + 1e-6)


@pytest.mark.parametrize("direction", [REMOVE, ADD])
@pytest.mark.parametrize(("rate", "noise", "epsilon"), [(0.3, 0.8, 0.2), (0.05, 1.5, 0.01), (0.01, 0.5, 0.005)])
def test_the_contour_of_one_step_holds_its_closed_form(
    direction: str, rate: float, noise: float, epsilon: float
) -> None:
    step = SampledStep(rate, noise, direction)
    exact = _one_step_delta(step, epsilon)
    total = LossSum(((step, 1),), 0.0, 1e-8 * exact)
    found = Contour(total, saddle_point(total, epsilon), epsilon, exact).bounds(epsilon)
    assert found.lower <= exact <= found.upper
    assert found.upper - found.lower < 0.05 * exact


@pytest.mark.parametrize("direction", [REMOVE, ADD])
@pytest.mark.parametrize("group_size", [2, 5])
def test_one_step_of_a_group_is_its_integral(direction: str, group_size: int) -> None:
    rate, noise, epsilon = 0.1, 1.5, 0.05
    step = SampledStep(rate, noise, direction, group_size)

    def integrand(x: float) -> float:
        loss = float(step.loss_of_sum(np.array([x]))[0])
        base = math.exp(-((x / noise) ** 2) / 2) / (noise * math.sqrt(2 * math.pi))
        if direction == REMOVE:
            return base * max(math.exp(loss) - math.exp(epsilon), 0)
        return base * max(1 - math.exp(epsilon + loss), 0)

    exact = quad(integrand, -15, 25, limit=400, points=[-1, 0, 0.5, 1, 2])[0]
    form = normal_form([(PoissonSampled(rate, noise), 1)])
    found = delta_bounds(form, epsilon, direction, group_size)
    assert found.lower <= exact * (1 + 1e-7)
    assert exact * (1 - 1e-7) <= found.upper <= exact * 1.01


def test_a_larger_group_is_protected_less() -> None:
    form = normal_form([(PoissonSampled(0.01, 1.0), 500)])
    values = [bounds_of_form(form, 1e-6, group_size).upper for group_size in (1, 2, 4, 8)]
    assert values == sorted(values)
    assert values[1] > 1.5 * values[0]


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"), [(0.01, 1.0, 300, 1e-6), (0.2, 4.0, 100, 1e-8), (0.001, 0.6, 500, 1e-5)]
)
def test_dp_accounting_brackets_the_bounds(rate: float, noise: float, steps: int, delta: float) -> None:
    """Guarantee: the upper bound holds.

    dp-accounting's pessimistic estimate lies above our lower bound, its optimistic one below our upper bound.
    """
    bounds = _bounds(rate, noise, steps, delta)

    def theirs(pessimistic: bool) -> float:
        one = privacy_loss_distribution.from_gaussian_mechanism(
            noise, sampling_prob=rate, value_discretization_interval=1e-4, pessimistic_estimate=pessimistic
        )
        return float(one.self_compose(steps).get_epsilon_for_delta(delta))

    optimistic, pessimistic = theirs(False), theirs(True)
    assert optimistic <= bounds.upper * (1 + 1e-9)
    assert bounds.lower <= pessimistic <= bounds.upper * 1.01


plans = st.tuples(
    st.floats(-6, 0).map(lambda e: 10**e),
    st.floats(math.log10(0.3), math.log10(50)).map(lambda e: 10**e),
    st.floats(0, 6).map(lambda e: int(10**e)),
    st.floats(-15, -3).map(lambda e: 10**e),
)


@settings(max_examples=25, deadline=None)
@given(plans)
def test_the_whole_range_is_answered_with_a_bound(plan: tuple[float, float, int, float]) -> None:
    """An answer with a bound, never NaN, negative or loose without saying so."""
    bounds = _bounds(*plan)
    assert 0 <= bounds.lower <= bounds.upper < math.inf
    assert bounds.error <= 0.02 * bounds.upper


@settings(max_examples=8, deadline=None)
@given(plans, st.floats(1.05, 2))
def test_epsilon_is_monotone_in_every_argument(plan: tuple[float, float, int, float], factor: float) -> None:
    """Truths are ordered, so no lower bound of the smaller may lie above the upper bound of the larger."""
    rate, noise, steps, delta = plan
    here = _bounds(rate, noise, steps, delta)
    assert _bounds(min(1.0, rate * factor), noise, steps, delta).upper >= here.lower
    assert _bounds(rate, noise, math.ceil(steps * factor), delta).upper >= here.lower
    assert _bounds(rate, noise * factor, steps, delta).lower <= here.upper
    assert _bounds(rate, noise, steps, delta * factor).lower <= here.upper
    assert epsilon_bounds([(Gaussian(noise), steps)], delta).upper >= here.lower


@settings(max_examples=30, deadline=None)
@given(st.floats(0.001, 0.9), st.floats(0.3, 20), st.floats(0, 30), st.floats(0, 3), st.sampled_from([REMOVE, ADD]))
def test_the_quadrature_error_bound_holds(rate: float, noise: float, tilt: float, turn: float, direction: str) -> None:
    """Against a quadrature with four times the panels."""
    step = SampledStep(rate, noise, direction)
    coarse = measure(step, 1e-15)
    frequency = 10**turn
    fine = measured(step, 1e-15, 4 * needed_panels(coarse, tilt, frequency, 1e-13, 1)[0])

    def transform(part):  # type: ignore[no-untyped-def]
        peak = (coarse.log_weights + tilt * coarse.losses).max()
        return np.sum(np.exp(part.log_weights + tilt * part.losses - peak + 1j * frequency * part.losses)), np.sum(
            np.exp(part.log_weights + tilt * part.losses - peak)
        )

    (rough, _), (exact, norm) = transform(coarse), transform(fine)
    assert abs(rough - exact) / norm <= quadrature_error(coarse, coarse.half_width, tilt, frequency) + 1e-12


def test_a_thousand_noise_levels_are_answered_sharply() -> None:
    levels = [(PoissonSampled(0.01, 1 + i / 1000), 1) for i in range(1000)]
    bounds = epsilon_bounds(levels, 1e-5)
    assert bounds.error <= 1e-6 * bounds.upper
    coarse = epsilon_bounds([(PoissonSampled(0.01, 1 + (i + 0.5) / 50), 20) for i in range(50)], 1e-5)
    assert bounds.upper == pytest.approx(coarse.upper, rel=1e-3)


def test_what_is_out_of_range_is_refused_with_the_cure() -> None:
    with pytest.raises(AccountingError, match="rdp"):
        _bounds(0.1, 1.0, 10, 1e-200)
    with pytest.raises(AccountingError, match="rdp"):
        _bounds(0.1, 1.0, 10**10, 1e-5)


def test_very_little_noise_is_charged_as_unsampled() -> None:
    bounds = _bounds(0.5, 0.005, 10, 1e-5)
    assert bounds.lower == 0
    assert bounds.upper == pytest.approx(gaussian_epsilon(10 / 0.005**2, 1e-5))


@pytest.mark.parametrize(
    ("rate", "noise", "steps", "delta"), [(1e-4, 0.6, 3, 1e-5), (1e-4, 1.0, 2, 1e-8), (1e-3, 0.4, 10, 1e-5)]
)
def test_few_steps_at_a_small_rate_are_bounded_closely_from_few_contours(
    monkeypatch: pytest.MonkeyPatch, rate: float, noise: float, steps: int, delta: float
) -> None:
    """Guarantee: the upper bound holds. Two steps are held against the enumeration of who takes part in them."""
    placed = []
    place = Contour._place

    def counted(self: Contour, *arguments: object) -> object:
        placed.append(self)
        return place(self, *arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(Contour, "_place", counted)
    search.of_direction.cache_clear()
    bounds = _bounds(rate, noise, steps, delta)
    assert bounds.error <= 5e-3 * bounds.upper
    assert len(placed) <= 12
    if steps == 2:
        assert _two_steps(rate, noise, bounds.lower) >= delta * (1 - 1e-6)
        assert _two_steps(rate, noise, bounds.upper) <= delta * (1 + 1e-6)


def _two_steps(rate: float, noise: float, epsilon: float) -> float:
    """δ of two steps in the direction "remove": over the first one's sum by quadrature, the second in closed form."""
    x = np.linspace(-9 * noise, 1 + 9 * noise, 6001)
    loss = SampledStep(rate, noise, REMOVE).loss_of_sum(x)
    density = np.exp(-((x / noise) ** 2) / 2 + loss) / (noise * math.sqrt(2 * math.pi))
    return float(np.trapezoid(density * [_any_epsilon(rate, noise, epsilon - at) for at in loss], x))


def _any_epsilon(rate: float, noise: float, epsilon: float) -> float:
    """δ of one step at an ε of any sign: P(L > ε) − e^ε Q(L > ε), with L increasing in x."""
    above = math.exp(epsilon) - (1 - rate)
    if above <= 0:
        return 1 - math.exp(epsilon)
    at = noise**2 * math.log(above / rate) + 0.5
    without, given = norm.sf(at / noise), norm.sf((at - 1) / noise)
    return float((1 - rate - math.exp(epsilon)) * without + rate * given)


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.1, 0.11, 100), (0.3, 0.05, 5), (0.01, 1.0, 300)])
def test_the_direction_that_is_not_integrated_holds_where_it_is_left_out(rate: float, noise: float, steps: int) -> None:
    """Guarantee: `most_of_add` is an upper bound on δ in the direction "add"."""
    form = normal_form([(PoissonSampled(rate, noise), steps)])
    measures = accountant._steps(form, ADD, 1)
    for epsilon in (0.1, 0.5, 2.0):
        most = search.most_of_add(measures, 0.0, epsilon, 1e-5)
        assert most >= delta_bounds(form, epsilon, ADD).lower
    upper = bounds_of_form(form, 1e-5).upper
    assert delta_bounds(form, upper, ADD).upper <= 1e-5
