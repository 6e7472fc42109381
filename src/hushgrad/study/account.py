"""The account that a run is charged in: a ledger of its own in its folder, or a part of one that several runs share.

A run in a shared ledger is a phase of it (`accounting.ledger.phases`) under a name that no other run has;
`account.json` in the run's folder says which. What is said of the privacy of such a run is of the whole ledger: who
sees the results of several runs on the same records sees what all of them have released.
"""

from __future__ import annotations

import json
import os
import secrets
from dataclasses import dataclass
from pathlib import Path

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.guarantee import delta_text, round_up
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.accounting.ledger.phases import split, up_to_step
from hushgrad.accounting.ledger.view import LedgerView
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable

FILE = "account.json"
OWN = "ledger.jsonl"
FORMAT = 1
_LONGEST_NAME = 60


@dataclass(frozen=True, slots=True)
class Account:
    """Where a run is charged; `phase` is the name of its part of a shared ledger, None for a ledger of its own."""

    ledger: Path
    phase: str | None = None

    @classmethod
    def read(cls, folder: Path) -> Account:
        """Return the account of the run in a folder. Raises InvalidArgumentError for a damaged file."""
        path = folder / FILE
        if not path.exists():
            return cls(folder / OWN)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
            if kept["format"] != FORMAT:
                raise ValueError("another format")
            # Relative to the folder: both can be moved together.
            return cls(Path(os.path.normpath(folder.resolve() / str(kept["ledger"]))), str(kept["phase"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                "the file is damaged, so nobody knows which ledger the run is charged in",
                where=FILE,
                cure="Restore it from a copy of the run's folder",
            ) from error

    @classmethod
    def joining(cls, ledger: Path, folder: Path) -> Account:
        """Return the account of a new run in `folder` that is to be a part of a shared ledger, under a new name."""
        name = printable(folder.resolve().name)[:_LONGEST_NAME]
        return cls(ledger.parent.resolve() / ledger.name, f"{name} {secrets.token_hex(4)}")

    def as_json(self, folder: Path) -> dict[str, str | int | None]:
        """Return what account.json in `folder` holds."""
        return {"format": FORMAT, "ledger": os.path.relpath(self.ledger, folder.resolve()), "phase": self.phase}


def spent_words(events: Composition, delta: float) -> str:
    """Return what an account has spent, as text."""
    return f"ε = {round_up(epsilon(events, delta))} at δ = {delta_text(delta)}"


def own_steps(ledger: LedgerView, phase: str | None) -> range:
    """Return which steps of a ledger are of a run: those of its phase; all where the ledger is its own."""
    if phase is None:
        return range(ledger.steps)
    ends = [*(later.begins for later in ledger.phases[1:]), ledger.steps]
    for one, end in zip(ledger.phases, ends, strict=True):
        if one.name == phase:
            return range(one.begins, end)
    return range(ledger.steps, ledger.steps)


def own_part(events: Composition, steps: range) -> Composition:
    """Return what was charged in these steps of an account; with the first one also what was released before it."""
    return up_to_step(split(events, steps.start)[1] if steps.start else events, len(steps))


def own_contract(ledger: LedgerView, phase: str | None) -> Contract:
    """Return the contract that the steps of a run were taken under."""
    return next((one.contract for one in ledger.phases if phase is not None and one.name == phase), ledger.contract)
