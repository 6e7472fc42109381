import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.accounting import Gaussian, PoissonSampled, cross_check
from hushgrad.accounting.bounds import EpsilonBounds
from hushgrad.errors import AccountingError

PLAN = [(PoissonSampled(0.01, 1.0), 500)]


def test_all_accountants_answer_and_agree() -> None:
    """Guarantee: no accountant's upper bound lies below another one's lower bound."""
    found = cross_check.cross_check(PLAN, 1e-6)
    assert set(found) == {"saddle-point", "pld", "rdp"}
    assert found["saddle-point"].lower <= found["pld"].upper <= found["rdp"].upper
    assert cross_check.cross_check([(Gaussian(1.0), 3)], 1e-6)["pld"].upper > 0


def test_who_refuses_is_left_out() -> None:
    assert set(cross_check.cross_check(PLAN, 1e-12)) == {"saddle-point", "rdp"}


@pytest.mark.parametrize(("name", "factor"), [("pld", 0.9), ("rdp", 0.5)])
def test_a_figure_that_contradicts_another_one_is_an_error(
    name: str, factor: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = cross_check.epsilon_bounds

    def altered(composition, delta, accountant):  # type: ignore[no-untyped-def]
        bounds = honest(composition, delta, accountant)
        return EpsilonBounds(bounds.lower * factor, bounds.upper * factor) if accountant == name else bounds

    monkeypatch.setattr(cross_check, "epsilon_bounds", altered)
    with pytest.raises(AccountingError, match="disagree"):
        cross_check.cross_check(PLAN, 1e-6)


@settings(max_examples=12, deadline=None)
@given(st.floats(-4, -0.3), st.floats(-0.4, 1.3), st.floats(1.5, 4), st.floats(-8, -3))
def test_accountants_agree_on_random_plans(rate: float, noise: float, steps: float, delta: float) -> None:
    """`python -m benchmarks.accountants random` does the same for a thousand plans of the whole range."""
    cross_check.cross_check([(PoissonSampled(10**rate, 10**noise), int(10**steps))], 10**delta)
