"""Phases of one account are opened by name, composed as one, and their contracts differ in what may differ."""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from hushgrad.accounting import Contract, DisjointPass, Ledger, PoissonSampled, epsilon, guarantee, read_ledger
from hushgrad.accounting.filter import PrivacyFilter
from hushgrad.accounting.ledger.phases import phase_name, split
from hushgrad.accounting.ledger.records import encode
from hushgrad.errors import (
    AccountingError,
    BudgetExhaustedError,
    ContractChangedError,
    HushgradError,
    InvalidArgumentError,
    LedgerError,
)

FIRST = Contract(
    "observed",
    "operating system",
    expected_batch_size=10,
    max_grad_norm=1.0,
    population=100,
    clipping="FlatClipping(max_grad_norm=1.0)",
)
SECOND = replace(
    FIRST, expected_batch_size=40, max_grad_norm=0.5, population=400, clipping="FlatClipping(max_grad_norm=0.5)",
    sampling="declared by the caller",
)  # fmt: skip
STEP, OTHER = PoissonSampled(0.1, 1.0), PoissonSampled(0.1, 2.0)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def charge(path: Path, contract: Contract, phase: str | None, *events: Any, **options: Any) -> None:
    with Ledger(path, contract=contract, phase=phase, **options) as ledger:
        for event in events:
            ledger.charge(event)


def test_all_phases_are_composed_in_one_epsilon_whatever_their_contracts(path: Path) -> None:
    charge(path, FIRST, "warm-up", STEP, STEP)
    charge(path, SECOND, "fine-tune", STEP, OTHER)
    charge(path, FIRST, "again", STEP)
    view = read_ledger(path)
    assert view.events == [(STEP, 3), (OTHER, 1), (STEP, 1)]
    assert [(phase.name, phase.contract, phase.begins) for phase in view.phases] == [
        ("warm-up", FIRST, 0),
        ("fine-tune", SECOND, 2),
        ("again", FIRST, 4),
    ]
    held = guarantee(view.events, 1e-5, contract=view.contract, conditions=view.conditions)
    assert held.epsilon == epsilon([(STEP, 4), (OTHER, 1)], 1e-5)
    assert held.steps == 5


def test_a_guarantee_names_each_phase_with_its_constants_and_which_composition_it_is(path: Path) -> None:
    charge(path, FIRST, "warm-up", STEP)
    alone = read_ledger(path)
    assert alone.contract == FIRST
    assert not alone.conditions
    charge(path, SECOND, "fine-tune", STEP)
    view = read_ledger(path)
    said = str(guarantee(view.events, 1e-5, contract=view.contract, conditions=view.conditions))
    for part in (
        "'warm-up' (1 step, sampling observed, N = 100, expected batch size 10, FlatClipping(max_grad_norm=1.0))",
        "'fine-tune' (1 step, sampling declared by the caller, N = 400, expected batch size 40, FlatClipping(",
        "This is the ordinary composition",
        "does not follow from what earlier ones released is on trust",
        "as if every record were in all of them",
    ):
        assert part in said
    assert view.contract.sampling == "declared by the caller"
    assert view.contract.population is None


def test_a_ledger_without_named_phases_goes_on_in_a_named_one(path: Path) -> None:
    charge(path, FIRST, None, STEP)
    charge(path, SECOND, "fine-tune", OTHER)
    assert [phase.name for phase in read_ledger(path).phases] == [None, "fine-tune"]
    assert "the first (1 step" in read_ledger(path).conditions[0].sentence


def test_the_phase_in_work_goes_on_by_its_name_after_a_crash(path: Path) -> None:
    charge(path, FIRST, "warm-up", STEP)
    left = Ledger(path, contract=SECOND, phase="fine-tune")
    left.charge(STEP, lease=1)
    left.close()
    charge(path, SECOND, "fine-tune", STEP)
    assert [(phase.name, phase.begins) for phase in read_ledger(path).phases] == [("warm-up", 0), ("fine-tune", 1)]


def test_a_phase_in_which_nothing_is_charged_leaves_nothing_behind(path: Path) -> None:
    """Guarantee: a phase is opened by its name alone, a name is used once, and unit and secrecy of the noise stay."""
    charge(path, FIRST, "warm-up", STEP)
    charge(path, SECOND, "mistyped")
    charge(path, SECOND, "fine-tune", STEP)
    charge(path, FIRST, "mistyped", STEP)
    assert [phase.name for phase in read_ledger(path).phases] == ["warm-up", "fine-tune", "mistyped"]


REFUSED = {
    "no name": (lambda path: charge(path, SECOND, None), ContractChangedError, "phase='fine-tune'"),
    "the same contract without a name": (
        lambda path: charge(path, FIRST, None),
        ContractChangedError,
        "the name of a new one",
    ),
    "a name that was used": (lambda path: charge(path, FIRST, "warm-up"), ContractChangedError, "a name of its own"),
    "another contract under the same name": (
        lambda path: charge(path, FIRST, "fine-tune"),
        ContractChangedError,
        "a new phase",
    ),
    "a fixed key": (
        lambda path: charge(path, replace(SECOND, noise_source="fixed key: NOT PRIVATE"), "third"),
        ContractChangedError,
        "new ledger",
    ),
    "another unit": (
        lambda path: charge(path, replace(SECOND, unit="one person"), "third"),
        ContractChangedError,
        "new ledger",
    ),
    "another relation": (lambda path: charge(path, SECOND, "third", DisjointPass(1.0, 0)), AccountingError, "relation"),
    "a filter after the first step": (
        lambda path: charge(path, SECOND, "third", rule=PrivacyFilter(3.0, 1e-5).rule(STEP)),
        ContractChangedError,
        "before the first step",
    ),
    "an empty name": (lambda path: charge(path, SECOND, " "), InvalidArgumentError, "name"),
    "a name of two lines": (lambda path: charge(path, SECOND, "a\nb"), InvalidArgumentError, "name"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_a_phase_that_cannot_follow_is_refused_with_a_cure_and_charges_nothing(name: str, path: Path) -> None:
    charge(path, FIRST, "warm-up", STEP)
    charge(path, SECOND, "fine-tune", STEP)
    program, kind, cure = REFUSED[name]
    with pytest.raises(kind) as raised:
        program(path)
    assert isinstance(raised.value, HushgradError)
    assert cure in raised.value.cure
    assert read_ledger(path).steps == 2
    assert len(read_ledger(path).phases) == 2


@pytest.mark.parametrize(
    "body",
    [
        {"name": "warm-up", "contract": asdict(SECOND)},
        {"name": "", "contract": asdict(SECOND)},
        {"name": "third", "contract": {**asdict(SECOND), "unit": "one person"}},
        {"name": "third", "contract": {**asdict(SECOND), "noise_source": "fixed key: NOT PRIVATE"}},
        {"name": "third"},
    ],
)
def test_a_record_of_a_phase_that_this_program_would_not_write_is_refused(path: Path, body: dict[str, Any]) -> None:
    charge(path, FIRST, "warm-up", STEP)
    anchor = read_ledger(path).anchor
    line, _ = encode("phase", anchor.seq + 1, anchor.hash, body)
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(LedgerError):
        read_ledger(path)


def test_a_ledger_that_lacks_the_record_of_a_phase_is_refused(path: Path) -> None:
    charge(path, FIRST, "warm-up", STEP)
    charge(path, SECOND, "fine-tune", STEP)
    lines = path.read_bytes().splitlines(keepends=True)
    cut = [line for line in lines if b'"kind":"phase"' not in line or b"warm-up" in line]
    assert len(cut) == len(lines) - 1
    path.write_bytes(b"".join(cut))
    with pytest.raises(LedgerError):
        read_ledger(path)


def test_a_filter_is_of_the_whole_account_and_ends_every_phase_at_the_last_step_that_fits(path: Path) -> None:
    rule = PrivacyFilter(3.0, 1e-5).rule(STEP)
    charge(path, FIRST, "warm-up", STEP, OTHER, rule=rule)
    with Ledger(path, contract=SECOND, phase="fine-tune") as ledger:
        assert ledger.filtering is not None
        fits = ledger.filtering.most(OTHER)
        assert fits > 1
        for _ in range(fits):
            ledger.charge(OTHER, lease=7)
        with pytest.raises(BudgetExhaustedError):
            ledger.charge(OTHER)
    view = read_ledger(path)
    assert view.steps == fits + 2
    held = guarantee(view.events, 1e-5, contract=view.contract, conditions=view.conditions)
    assert held.epsilon == pytest.approx(3.0, rel=1e-7)
    assert "a filter charges it" in str(held)
    assert "ordinary composition" not in str(held)
    with pytest.raises(ContractChangedError, match="another one is asked for"):
        charge(path, SECOND, "third", rule=PrivacyFilter(9.0, 1e-5).rule(STEP))
    charge(path, SECOND, "fine-tune", rule=PrivacyFilter(3.0, 1e-5).rule(OTHER))  # the same budget: it goes on


def test_a_rule_that_comes_after_a_charge_is_refused_by_the_reader(path: Path) -> None:
    charge(path, FIRST, None, STEP)
    anchor = read_ledger(path).anchor
    event = PrivacyFilter(3.0, 1e-5).rule(STEP).to_json()
    line, _ = encode("charge", anchor.seq + 1, anchor.hash, {"event": event, "count": 1})
    path.write_bytes(path.read_bytes() + line)
    with pytest.raises(LedgerError, match="filter after the first charge"):
        read_ledger(path)


def test_a_composition_is_split_by_its_steps() -> None:
    rule = PrivacyFilter(3.0, 1e-5).rule(STEP)
    account = [(rule, 1), (STEP, 3), (OTHER, 2)]
    assert split(account, 0) == ([(rule, 1)], [(STEP, 3), (OTHER, 2)])
    assert split(account, 2) == ([(rule, 1), (STEP, 2)], [(STEP, 1), (OTHER, 2)])
    assert split(account, 5) == (account, [])
    assert phase_name("round 12") == "round 12"


OTHER_LIBRARY = replace(
    FIRST, sampling="declared by the caller", noise_source="not observed", clipping="flat, elsewhere"
)


def test_steps_of_another_library_and_own_ones_follow_each_other_and_the_account_says_so(path: Path) -> None:
    charge(path, OTHER_LIBRARY, "elsewhere", STEP, STEP)
    charge(path, FIRST, "here", STEP)
    view = read_ledger(path)
    assert [phase.contract.noise_source for phase in view.phases] == ["not observed", "operating system"]
    assert view.contract.noise_source == "not observed"
    assert view.events == [(STEP, 3)]
    told = guarantee(view.events, 1e-5, contract=view.contract, conditions=view.conditions)
    assert told.epsilon == epsilon([(STEP, 3)], 1e-5)
    assert "'elsewhere' (2 steps, sampling declared by the caller, noise not observed" in str(told)
    assert str(told).startswith("NOT VOUCHED FOR: ")


def test_a_fixed_key_never_follows_noise_that_was_not_observed(path: Path) -> None:
    charge(path, OTHER_LIBRARY, "elsewhere", STEP)
    with pytest.raises(ContractChangedError, match="new ledger"):
        charge(path, replace(FIRST, noise_source="fixed key: NOT PRIVATE"), "here", STEP)
