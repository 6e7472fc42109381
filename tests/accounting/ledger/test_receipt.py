"""A receipt is what a ledger held at one moment, and comes back from plain values or is refused."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hushgrad import DPSGD, FlatClipping, PoissonSampling
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import CheckpointError

CONTRACT = Contract("observed", "operating system")
RECEIPT = Receipt("ab" * 16, 7, LedgerHead(9, "0f" * 32), True)

EVENT = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.1), expected_batch_size=3
).event()


def test_a_receipt_comes_back_from_json() -> None:
    assert Receipt.from_state(json.loads(json.dumps(RECEIPT.as_state()))) == RECEIPT


@pytest.mark.parametrize(
    "change",
    [
        *({name: None} for name in RECEIPT.as_state()),
        {"steps": -1}, {"steps": "7"}, {"format": 2},
        {"anchor": [1]}, {"anchor": [1, "x"]}, {"anchor": [-1, "0f" * 32]},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_receipt_is_refused(change: dict[str, Any]) -> None:
    said = {**RECEIPT.as_state(), **change}
    if change in ({"run": None}, {"is_on_disk": None}):  # another run's, or one in memory: the ledger decides
        assert Receipt.from_state(said) != RECEIPT
        return
    with pytest.raises(CheckpointError):
        Receipt.from_state(said)


@pytest.mark.parametrize("state", [None, 3, [], {}, {"model": {}}])
def test_what_is_no_receipt_is_refused(state: Any) -> None:
    with pytest.raises(CheckpointError, match="no receipt of private training"):
        Receipt.from_state(state)


def test_within_a_lease_a_receipt_may_speak_of_as_many_steps_as_were_taken_and_of_no_others(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=CONTRACT) as ledger:
        ledger.charge(EVENT, 5)
        for taken in (6, 7, 8):
            ledger.charge(EVENT, lease=4)
            receipt = Receipt(ledger.run, taken, ledger.anchor, True)
            assert receipt.steps_of(path) == 9, "the file holds the whole lease"
            for other in (0, 5, 10):
                with pytest.raises(CheckpointError, match=f"speaks of {other} steps"):
                    replace(receipt, steps=other).steps_of(path)
    returned = Receipt(ledger.run, 8, read_ledger(path).anchor, True)
    assert receipt.steps_of(path) == returned.steps_of(path) == 8
    with pytest.raises(CheckpointError, match="speaks of 7 steps, and its ledger held 8"):
        replace(returned, steps=7).steps_of(path)
