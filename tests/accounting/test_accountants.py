"""ε against independent values, and what must hold for every composition."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import ACCOUNTANTS, DisjointPass, Gaussian, PoissonSampled, epsilon
from hushgrad.accounting.events.truncated_poisson import TruncatedPoisson
from hushgrad.accounting.risk import gaussian_mu, true_positive_rate
from hushgrad.accounting.selection import selection_epsilon
from hushgrad.errors import AccountingError, InvalidArgumentError

ROWS = json.loads((Path(__file__).parent / "golden" / "accounting.json").read_text())["rows"]
BOTH = pytest.mark.parametrize("accountant", sorted(ACCOUNTANTS))


def _of(row: dict) -> list:  # type: ignore[type-arg]
    return [(PoissonSampled(row["sampling_rate"], row["noise_multiplier"]), row["steps"])]


@pytest.mark.parametrize("row", [row for row in ROWS if row["delta"] >= 1e-8], ids=lambda row: row["name"])
def test_pld_agrees_with_the_reference_to_a_thousandth_and_is_never_below_it(row: dict) -> None:  # type: ignore[type-arg]
    value = epsilon(_of(row), row["delta"], "pld")
    assert row["epsilon"] * (1 - 1e-9) <= value <= row["epsilon"] * 1.001


@pytest.mark.parametrize("row", [row for row in ROWS if row["delta"] < 1e-8], ids=lambda row: row["name"])
def test_pld_refuses_a_delta_that_its_rounding_hides(row: dict) -> None:  # type: ignore[type-arg]
    with pytest.raises(AccountingError, match="accountant='saddle-point'"):
        epsilon(_of(row), row["delta"], "pld")


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row["name"])
def test_rdp_is_an_upper_bound_at_every_delta(row: dict) -> None:  # type: ignore[type-arg]
    """Guarantee: an upper bound at every delta in (0, 1)."""
    assert epsilon(_of(row), row["delta"], "rdp") >= row["epsilon"]


@BOTH
@pytest.mark.parametrize("composition", [[], [(Gaussian(1.0), 0)], [(PoissonSampled(0.0, 1.0), 10)]])
def test_epsilon_of_nothing_is_zero(composition: list, accountant: str) -> None:  # type: ignore[type-arg]
    """Guarantee: 0 for a composition that released nothing."""
    assert epsilon(composition, 1e-5, accountant) == 0
    assert epsilon(composition, 1e-300, accountant) == 0


@BOTH
@pytest.mark.parametrize("event", [Gaussian(0), PoissonSampled(1e-9, 0), DisjointPass(0, 3)])
def test_no_noise_is_infinite(event, accountant: str) -> None:  # type: ignore[no-untyped-def]
    """Guarantee: infinity where a release had no noise."""
    assert epsilon([(event, 1)], 0.5, accountant) == math.inf


@settings(max_examples=40, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.builds(PoissonSampled, st.floats(1e-7, 1), st.floats(0.05, 1e5))
            | st.builds(Gaussian, st.floats(0.01, 1e5)),
            st.integers(1, 10_000),
        ),
        min_size=1,
        max_size=2,
    ),
    st.floats(1e-8, 0.9),
    st.sampled_from(sorted(ACCOUNTANTS)),
)
def test_epsilon_is_a_finite_number_that_is_not_negative(composition: list, delta: float, accountant: str) -> None:  # type: ignore[type-arg]
    """Guarantee: never negative, never NaN."""
    value = epsilon(composition, delta, accountant)
    assert 0 <= value < math.inf


@settings(max_examples=10, deadline=None)
@given(st.floats(1e-3, 0.5), st.floats(0.6, 10), st.integers(1, 2000), st.floats(1e-8, 1e-2))
def test_epsilon_grows_with_rate_and_steps_and_falls_with_noise_and_delta(q: float, s: float, n: int, d: float) -> None:
    here = epsilon([(PoissonSampled(q, s), n)], d)
    slack = 1e-3 * here + 1e-9  # each value is within a thousandth above the truth
    assert epsilon([(PoissonSampled(min(1, 1.2 * q), s), n)], d) >= here - slack
    assert epsilon([(PoissonSampled(q, s), n + n // 2 + 1)], d) >= here - slack
    assert epsilon([(PoissonSampled(q, 1.2 * s), n)], d) <= here + slack
    assert epsilon([(PoissonSampled(q, s), n)], 2 * d) <= here + slack
    assert epsilon([(Gaussian(s), n)], d) >= here - slack


def test_a_million_steps_and_a_thousand_noise_levels_are_answered() -> None:
    for accountant in ACCOUNTANTS:
        assert 0 < epsilon([(PoissonSampled(0.001, 1.0), 10**6)], 1e-8, accountant) < 20
    levels = [(PoissonSampled(0.01, 1 + i / 1000), 1) for i in range(1000)]
    value = epsilon(levels, 1e-5)
    lowest, highest = (epsilon([(PoissonSampled(0.01, s), 1000)], 1e-5) for s in (1.999, 1.0))
    assert lowest < value < highest


@pytest.mark.parametrize("delta", [0, 1, -1e-5, 1.5, math.nan, math.inf, "1e-5", True, None])
@BOTH
def test_a_delta_that_is_not_between_zero_and_one_is_refused(delta: object, accountant: str) -> None:
    with pytest.raises(InvalidArgumentError, match="delta"):
        epsilon([(Gaussian(1.0), 1)], delta, accountant)  # type: ignore[arg-type]


def test_an_unknown_accountant_is_refused() -> None:
    with pytest.raises(InvalidArgumentError, match="'pld'"):
        epsilon([], 1e-5, "prv")


def test_mixed_neighbouring_relations_have_no_epsilon() -> None:
    with pytest.raises(AccountingError, match="neighbouring relations"):
        epsilon([(PoissonSampled(0.1, 1.0), 1), (DisjointPass(1.0, 0), 1)], 1e-5)


def test_compositions_without_sampling_are_exact_at_any_delta() -> None:
    """Guarantee: unsampled Gaussian releases alone are charged by their exact curve."""
    assert epsilon([(Gaussian(10.0), 100)], 1e-5) == pytest.approx(4.377178095681137, rel=1e-9)
    assert epsilon([(Gaussian(1.0), 1)], 1e-30) == pytest.approx(epsilon([(Gaussian(2.0), 4)], 1e-30), rel=1e-12)
    assert epsilon([(DisjointPass(10.0, i), 7) for i in range(100)], 1e-5) == pytest.approx(4.377178095681137, rel=1e-9)


@BOTH
def test_a_program_that_makes_numpy_raise_gets_the_same_epsilon(accountant: str) -> None:
    plans = [[(PoissonSampled(0.01, noise), 200)] for noise in (0.6, 1.0, 4.0)]
    plans += [[(TruncatedPoisson(0.01, 1.0, 10_000, 150), 200)], [(Gaussian(2.0), 3)]]
    before = [epsilon(plan, 1e-6, accountant) for plan in plans]
    with np.errstate(all="raise"):
        assert [epsilon(plan, 1e-6, accountant) for plan in plans] == before
        assert true_positive_rate(plans[1], 0.01) > 0.01
        assert gaussian_mu(plans[1]) > 0
        assert selection_epsilon(plans[1], 1e-6, 10) > before[1]
