"""An interrupt at any moment at which a ledger is open: its lock is free again, and it can be gone on with."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from points import AlarmError, interrupted_at
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine, release
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.ledger.contract import DECLARED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.releases import Count

CONTRACT = Contract(DECLARED, OPERATING_SYSTEM)


def is_of_ledgers(file: str) -> bool:
    return "hushgrad/accounting/ledger/" in file


def is_of_a_release(file: str) -> bool:
    return is_of_ledgers(file) or "hushgrad/releases/releasing" in file


def charged_at(path: Path) -> int:
    return sum(count for _, count in read_ledger(path).events) if path.exists() else 0


def at_moments(
    every: int,
    begin: Callable[[], object],
    run: Callable[[], object],
    watched: Callable[[str], bool],
    then: Callable[[], None],
) -> int:
    """Interrupt a run at one moment after the other, and look at what is left while the exception is still held.

    So a notebook holds the last one: what its frames hold is not collected. Return the number of moments.
    """
    point = 1
    while True:
        begin()
        outcome = interrupted_at(point, run, watched)
        then()
        if not outcome.rang:
            assert outcome.error is None
            return point
        assert isinstance(outcome.error, AlarmError), f"at moment {point}: {outcome.error!r}"
        point += every


EVERY = [pytest.param(1, marks=pytest.mark.slow), 11]


@pytest.mark.parametrize("every", EVERY)
@pytest.mark.parametrize("exists", [False, True])
def test_a_release_that_was_interrupted_anywhere_leaves_the_ledger_to_the_next_one(
    tmp_path: Path, exists: bool, every: int
) -> None:
    query, records, path = Count(of=bool), [1, 0, 1], tmp_path / "ledger.jsonl"

    def ask() -> None:
        release(query, records, ledger=path, noise_multiplier=3.0)

    def begin() -> None:
        path.unlink(missing_ok=True)
        if exists:
            ask()

    def look() -> None:
        before = charged_at(path)
        assert before in ((1, 2) if exists else (0, 1))
        ask()  # the lock is free, and the file is whole
        assert charged_at(path) == before + 1

    assert at_moments(every, begin, ask, is_of_a_release, look) > 300


@pytest.mark.parametrize("every", EVERY)
def test_a_block_that_was_interrupted_anywhere_leaves_the_file_unlocked(tmp_path: Path, every: int) -> None:
    """Guarantee: `with Ledger(path, ...) as ledger, ledger:` leaves the file unlocked wherever an interrupt ends it."""
    path = tmp_path / "ledger.jsonl"

    def begin() -> None:
        path.unlink(missing_ok=True)
        Ledger(path, contract=CONTRACT).close()

    def work() -> None:
        with Ledger(path, contract=CONTRACT) as ledger, ledger:
            ledger.charge(Gaussian(1.0), lease=4)

    def look() -> None:
        Ledger(path, contract=CONTRACT).close()

    assert at_moments(every, begin, work, lambda file: is_of_ledgers(file) or file == __file__, look) > 300


@pytest.mark.parametrize("every", EVERY)
def test_a_session_whose_set_up_was_interrupted_anywhere_leaves_the_ledger_to_the_next_one(
    tmp_path: Path, every: int
) -> None:
    path, data = tmp_path / "ledger.jsonl", TensorDataset(torch.randn(20, 3), torch.zeros(20, dtype=torch.int64))

    def make() -> PrivacyEngine:
        model, engine = nn.Linear(3, 2), PrivacyEngine(ledger=path)
        engine.make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=5),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
        )
        return engine

    made: list[PrivacyEngine] = []

    def begin() -> None:
        path.unlink(missing_ok=True)

    def look() -> None:
        while made:
            made.pop().session.close()
        make().session.close()

    assert at_moments(every, begin, lambda: made.append(make()), is_of_a_session, look) > 200


def is_of_a_session(file: str) -> bool:
    return is_of_ledgers(file) or file.endswith("hushgrad/session/spending.py")


def test_a_ledger_without_an_owner_is_unlocked_as_it_is_collected(tmp_path: Path) -> None:
    """Guarantee: the lock ends with this object at the latest."""
    path = tmp_path / "ledger.jsonl"
    Ledger(path, contract=CONTRACT).charge(Gaussian(1.0))
    with Ledger(path, contract=CONTRACT) as ledger:
        assert ledger.steps == 1
