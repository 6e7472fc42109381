"""Steps of Opacus in a ledger: one phase, whose noise nobody here observed."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from pathlib import Path

from hushgrad.accounting import conditions
from hushgrad.accounting.conditions import Condition
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.ledger.file import ledger_path
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.errors import LedgerError
from hushgrad.migration.opacus.file import Stored
from hushgrad.migration.opacus.questions import Declared

_ATTENTION_OF_1_4 = Condition(
    "attention of Opacus 1.4",
    "the imported model has Opacus' attention and was trained with Opacus 1.4 or 1.5: in 1.4 ModuleValidator.fix made "
    "layers with batch_first=True attend from one record to the others, so that no epsilon holds. That this is none of "
    "those is on trust",
)

PHASE = "Opacus"
NOTED_AS = "imported"


def write_ledger(
    path: str | os.PathLike[str], events: Sequence[tuple[Event, int]], said: Declared, stored: Stored
) -> None:
    """Write the ledger under another name, then give it its own: no crash leaves one that holds part of the steps."""
    final = ledger_path(path)
    try:
        with tempfile.TemporaryDirectory(prefix=f".{final.name}.", dir=final.parent) as folder:
            file = Path(folder) / final.name
            with Ledger(file, contract=said.contract, phase=PHASE) as ledger:
                for event, count in events:
                    ledger.charge(event, count)
                ledger.note(NOTED_AS, _note(ledger.steps, said, stored))
                if stored.is_of_1_4_or_1_5 and any(name.endswith("qlinear.weight") for name in stored.weights):
                    ledger.note(conditions.NOTED_AS, _ATTENTION_OF_1_4.as_note())
            os.link(file, final)  # unlike a rename, this never replaces a file
        folder_of_it = os.open(final.parent, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(folder_of_it)
        finally:
            os.close(folder_of_it)
    except FileExistsError:
        raise LedgerError(
            "there is a file at its path already, and these steps cannot be put before what it holds",
            where="the ledger",
            cure="Choose a new path. If these steps are in that ledger already, go on with it",
        ) from None
    except OSError as error:
        raise LedgerError(
            f"it cannot be written: {error.strerror or type(error).__name__}",
            where="the ledger",
            cure="Choose a path on a local disk, in a folder that exists",
        ) from error


def _note(steps: int, said: Declared, stored: Stored) -> dict[str, str | int | float]:
    note: dict[str, str | int | float] = {
        "from": "Opacus",
        "steps": steps,
        "its_accountant": stored.accountant,
        "sha256_of_checkpoint": stored.sha256,
        "sampling": "Poisson" if said.poisson_sampling else f"shuffled batches, {said.passes} passes",
    }
    if stored.schedules:
        note["schedules"] = ", ".join(sorted(stored.schedules))
    return note
