import json
import math
import re
from decimal import Decimal

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from hushgrad.accounting import Contract, DisjointPass, Gaussian, PoissonSampled, epsilon, guarantee
from hushgrad.accounting.guarantee import delta_text, round_up

CONTRACT = Contract("observed", "operating system", expected_batch_size=80, population=8000)
RUN = [(PoissonSampled(0.01, 1.0), 1000)]


@given(st.floats(0, 1e300, allow_nan=False))
def test_an_epsilon_in_text_is_never_rounded_down(value: float) -> None:
    shown = Decimal(round_up(value))
    assert Decimal(value) <= shown <= Decimal(value) * Decimal("1.001001")


def test_rounding_shows_four_digits() -> None:
    assert [round_up(x) for x in (0.0, 1.5153702, 2.0, 1234.5, math.inf)] == ["0", "1.516", "2", "1235", "inf"]


def test_the_sentence_holds_every_condition_of_the_epsilon() -> None:
    """Guarantee: every condition of the ε is in the result's sentence."""
    result = guarantee(RUN, 1e-5, "pld", CONTRACT)
    text = str(result)
    assert result.private
    assert result.epsilon == epsilon(RUN, 1e-5, "pld")
    for part in (round_up(result.epsilon), "1e-05", "one record", "add/remove-one", "1000 steps", "rate 0.01", "pld",
                 "Sampling was observed", "N = 8000 is declared public",
                 "batch size 80 is declared public"):  # fmt: skip
        assert part in text
    assert "NOT PRIVATE" not in text


def test_sampling_that_was_declared_is_said() -> None:
    assert "Sampling was declared by the caller" in str(
        guarantee(RUN, 1e-5, contract=Contract("declared by the caller", "operating system"))
    )


def test_no_noise_begins_with_not_private() -> None:
    result = guarantee([(PoissonSampled(0.01, 0.0), 5)], 1e-5, contract=CONTRACT)
    assert not result.private
    assert str(result).startswith("NOT PRIVATE: epsilon is infinite.")
    assert "noise multiplier is 0" in str(result)


def test_a_fixed_key_begins_with_not_private() -> None:
    result = guarantee(RUN, 1e-5, contract=Contract("observed", "fixed key: NOT PRIVATE"))
    assert not result.private
    assert math.isfinite(result.epsilon)
    assert str(result).startswith("NOT PRIVATE: the noise key is fixed.")


def test_disjoint_batches_are_said_to_be_without_amplification_under_zero_out() -> None:
    result = guarantee([(DisjointPass(2.0, 0), 10), (DisjointPass(2.0, 1), 10)], 1e-5)
    assert result.adjacency == "zero-out"
    assert result.steps == 20
    assert "2 passes, charged without amplification" in str(result)
    assert "zero-out" in str(result)
    assert result.epsilon == epsilon([(Gaussian(2.0), 2)], 1e-5)


def test_a_run_that_did_nothing_costs_nothing() -> None:
    result = guarantee([], 1e-5, contract=CONTRACT)
    assert (result.epsilon, result.steps, result.private) == (0, 0, True)


@pytest.mark.parametrize("noise", [1.0, 0.0])
def test_the_json_form_is_valid_json_and_infinity_is_a_string(noise: float) -> None:
    value = json.loads(json.dumps(guarantee([(PoissonSampled(0.01, noise), 5)], 1e-5).as_json(), allow_nan=False))
    assert (value["epsilon"] == "inf") == (noise == 0)
    assert value["private"] == (noise > 0)


@given(st.floats(1e-150, 1, exclude_max=True))
@example(1 / 300_001)
def test_a_delta_in_text_is_never_rounded_down(delta: float) -> None:
    text = delta_text(delta)
    assert delta <= float(text) <= delta * (1 + 1e-5)
    assert len(text) <= 12


@pytest.mark.parametrize("delta", [1e-5, 1e-9, 0.5, 0.001, 3e-7])
def test_a_delta_that_text_holds_exactly_stays_as_it_is_usually_written(delta: float) -> None:
    assert delta_text(delta) == f"{delta:g}"


@pytest.mark.parametrize("noise", [0.7, 1.0, 1.3, 2.0, 5.0])
@pytest.mark.parametrize("steps", [60, 300, 900, 6000])
def test_the_error_that_is_printed_is_not_below_the_error_that_is_stated(noise: float, steps: int) -> None:
    delta = 1 / 300_001
    result = guarantee([(PoissonSampled(0.01, noise), steps)], delta)
    assert result.numerical_error is not None
    found = re.search(r"at most (\S+) above the exact value", str(result))
    assert found is None if result.epsilon == 0 else found is not None and float(found[1]) >= result.numerical_error
    assert f", {delta_text(delta)})-differential privacy" in str(result)


def test_every_guarantee_says_that_one_record_is_one() -> None:
    plan = guarantee([(PoissonSampled(0.01, 1.1), 10)], 1e-5)
    run = guarantee([], 1e-5, contract=Contract(sampling="observed", noise_source="operating system"))
    for held in (plan, run):
        assert "One record is one row of the dataset: of a person with several, equal ones too" in str(held)


def test_noise_that_was_not_observed_is_not_vouched_for_and_named_as_a_condition() -> None:
    """Guarantee: whatever noise another library drew is said before all else, and is no claim of ours."""
    contract = Contract(sampling="declared by the caller", noise_source="not observed")
    told = guarantee(RUN, 1e-5, contract=contract)
    assert not told.noise_is_observed
    assert told.noise_is_secret  # nothing says that anybody knows its key
    assert str(told).startswith("NOT VOUCHED FOR: the noise of some of these steps was not observed.")
    assert "was not observed and is on trust" in str(told)
    assert "noise not observed" in {condition.name for condition in told.conditions}
    assert told.as_json()["noise_is_observed"] is False
