"""A receipt is what a ledger held at one moment, and comes back from plain values or is refused."""

from __future__ import annotations

import json
from typing import Any

import pytest

from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.errors import CheckpointError

RECEIPT = Receipt("ab" * 16, 7, LedgerHead(9, "0f" * 32), True)


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
