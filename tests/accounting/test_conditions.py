"""Conditions as values: what the notes of a ledger hold is what a guarantee says."""

from __future__ import annotations

from pathlib import Path

import pytest

from hushgrad.accounting.conditions import (
    CLOSED,
    DECLARED_SAMPLING,
    FIXED_KEY,
    INNER_LOSS,
    LOSS_OF_MODEL,
    LOSSES_CHANGE,
    NEVER_EXAMINED,
    NO_LEDGER_PATH,
    NOTED_AS,
    ONE_RECORD_IS_ALL,
    ORDER_OF_ROWS,
    OUTSIDE_CALL,
    OWN_LOSS,
    ROUNDED_TOGETHER,
    ROWS_OF_USERS,
    UNREAD_LOSS,
    USERS_TOLD,
    Condition,
    discarded,
    from_note,
    joined,
    not_examined,
    third_party,
    uncounted,
)
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.guarantee import TOLD_OTHERWISE, guarantee
from hushgrad.accounting.ledger.contract import DECLARED, OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.contract import FIXED_KEY as FIXED
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger

ALL = (
    CLOSED,
    DECLARED_SAMPLING,
    FIXED_KEY,
    INNER_LOSS,
    LOSS_OF_MODEL,
    LOSSES_CHANGE,
    NEVER_EXAMINED,
    NO_LEDGER_PATH,
    ORDER_OF_ROWS,
    ONE_RECORD_IS_ALL,
    OUTSIDE_CALL,
    OWN_LOSS,
    ROUNDED_TOGETHER,
    ROWS_OF_USERS,
    UNREAD_LOSS,
    USERS_TOLD,
    discarded(2),
    not_examined("a part, for a reason"),
    third_party("clip rule", "Mine"),
    uncounted(3),
)
CONTRACT = Contract(OBSERVED, OPERATING_SYSTEM)
STEP = PoissonSampled(0.01, 1.0)


def test_every_condition_has_a_name_of_its_own_and_one_sentence() -> None:
    assert len({condition.name for condition in ALL}) == len(ALL)
    for condition in ALL:
        assert condition.sentence[0].islower() or condition.sentence[0].isdigit()
        assert not condition.sentence.endswith(".")
        assert ". " not in condition.sentence


@pytest.mark.parametrize("condition", ALL, ids=lambda condition: condition.name)
def test_a_condition_that_was_noted_is_read_again(condition: Condition, tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", contract=CONTRACT) as ledger:
        ledger.charge(STEP)
        ledger.note(NOTED_AS, condition.as_note())
        assert ledger.conditions == (condition,)
    view = read_ledger(tmp_path / "ledger")
    assert view.conditions == (condition,)
    with Ledger(tmp_path / "ledger", contract=CONTRACT) as ledger:
        assert ledger.conditions == (condition,)


@pytest.mark.parametrize("condition", ALL, ids=lambda condition: condition.name)
def test_a_guarantee_names_and_says_every_condition_and_its_epsilon_is_the_same(condition: Condition) -> None:
    plain = guarantee([(STEP, 100)], 1e-5, contract=CONTRACT)
    told = guarantee([(STEP, 100)], 1e-5, contract=CONTRACT, conditions=[condition])
    assert told.epsilon == plain.epsilon
    assert plain.conditions == ()
    assert told.conditions == (condition,)
    assert told.as_json()["conditions"] == [condition.as_note()]
    if condition not in TOLD_OTHERWISE:
        assert condition.sentence[1:] in str(told)
        assert condition.sentence[1:] not in str(plain)


def test_what_the_contract_says_is_among_the_conditions_and_said_once() -> None:
    found = guarantee([(STEP, 100)], 1e-5, contract=Contract(DECLARED, FIXED))
    assert found.conditions == (DECLARED_SAMPLING, FIXED_KEY)
    assert str(found).lower().count("declared by the caller") == 1
    assert str(found).count("NOT PRIVATE: the noise key is fixed") == 1


def test_discarded_batches_are_added_up_and_all_other_conditions_told_once() -> None:
    assert joined([discarded(1), OWN_LOSS, discarded(2), OWN_LOSS]) == (discarded(3), OWN_LOSS)


def test_notes_of_monitors_are_no_conditions(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger", contract=CONTRACT) as ledger:
        ledger.note("noise monitor", {"name": "x", "sentence": "y"})
    assert read_ledger(tmp_path / "ledger").conditions == ()


@pytest.mark.parametrize("values", [{}, {"name": "x"}, {"name": "x", "sentence": "y", "count": -1}, {"name": 1}])
def test_a_note_that_holds_no_condition_is_none(values: dict[str, object]) -> None:
    assert from_note(values) is None
