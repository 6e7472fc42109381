"""One ledger for several runs on the same data: what must hold before a run may go on with it, looked at beforehand.

Beside the ledger lies a file that says on which data its steps ran, by the SHA-256 of the data file, which no ε covers
(as in provenance.json). The ledger of a run's own folder can be shared as well: that folder says on which data.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import Composition, adjacency_of, require_established
from hushgrad.accounting.guarantee import round_up
from hushgrad.accounting.ledger.file import LedgerFile, ledger_path
from hushgrad.accounting.ledger.view import LedgerView, read_ledger
from hushgrad.errors import (
    AccountingError,
    BudgetExhaustedError,
    ContractChangedError,
    DatasetError,
    InvalidArgumentError,
)
from hushgrad.printable import printable
from hushgrad.result_file import replace_file
from hushgrad.session.spending import events_before
from hushgrad.study.account import OWN, Account, spent_words
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.directory import RunDirectory, from_json, json_text
from hushgrad.study.provenance import DIGEST, data_of, read_provenance
from hushgrad.study.tasks import Task

WHERE = "--ledger"


def require_shareable(ledger: Path, config: RunConfig, task: Task, provenance: dict[str, Any]) -> None:
    """Raise why a run cannot go on with the account in `ledger`, before anything is written; a new one is shareable.

    Guarantee: a run that cannot go on with a shared ledger is refused before anything is charged.

    Raises:
        InvalidArgumentError: an ordinary run, what is counted with noise before training, a missing folder, or a
            ledger of which nobody can say on which data its steps ran.
        DatasetError: the ledger is one of other data.
        ContractChangedError: its ε is for other units (people and not records).
        AccountingError: its steps hold under another neighbouring relation.
        BudgetExhaustedError: it has spent the target or the budget already.
        LedgerError: it is damaged, or another run writes it.
    """
    privacy = config.privacy
    if privacy is None:
        raise InvalidArgumentError("an ordinary run is charged nowhere", where=WHERE, cure="Leave it out")
    if config.class_weights_epsilon is not None or task.preparation is not None:
        raise InvalidArgumentError(
            "what is counted with noise before training is charged in a ledger of the run's own alone",
            where=WHERE,
            cure="Leave --ledger out, or give public numbers in place of what is counted",
        )
    if not ledger.parent.is_dir():
        raise InvalidArgumentError("its folder does not exist", where=WHERE, cure="Make the folder, or check the path")
    view = None
    if ledger_path(ledger).exists() or ledger.is_symlink():
        view = read_ledger(ledger)
        require_established(view.events)
    _require_same_data(ledger, view, privacy.delta, data_of(provenance["data"], config.task))
    if view is not None:
        LedgerFile.open(ledger_path(ledger)).close()  # refuses one that another run writes
        _require_same_unit(view, config, task, privacy)
        _require_room(view.events, ledger, privacy)


def spent_before(account: Account) -> Composition:
    """Return what a ledger that is shared holds of runs before; nothing of a ledger of the run's own."""
    return events_before(account.ledger, account.phase)


def write_data(ledger: Path, config: RunConfig, provenance: dict[str, Any]) -> None:
    """Write on which data the steps of a new shared ledger run; one that says so already is left as it is."""
    path = _data_file(ledger)
    if not path.exists() and not ledger.exists():
        said = {"format": 1, "task": config.task, "data": provenance["data"], "not_covered": [DIGEST]}
        replace_file(path, (json_text(said, indent=2) + "\n").encode())


def data_beside(ledger: Path) -> tuple[str, str] | None:
    """Return the name of the data of a ledger and what tells them from others; None where nobody can say.

    Raises InvalidArgumentError for a damaged file.
    """
    path = _data_file(ledger)
    if path.exists():
        try:
            said = from_json(path.read_text(encoding="utf-8"))
            return data_of(said["data"], str(said["task"]))
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InvalidArgumentError(
                "the file is damaged, so nobody can say on which data the ledger's steps ran",
                where=path.name,
                cure="Restore it from a copy, or begin a new ledger",
            ) from error
    directory = RunDirectory(ledger.parent)
    if ledger.name != OWN or not directory.config.exists():
        return None
    known = read_provenance(directory.provenance)
    try:
        task = str(from_json(directory.config.read_bytes())["task"])
    except (OSError, ValueError, KeyError, TypeError):
        return None
    return None if known is None else data_of(known["data"], task)


def _data_file(ledger: Path) -> Path:
    return ledger.with_name(f"{ledger.name}.data.json")


def _require_same_data(ledger: Path, view: LedgerView | None, delta: float, own: tuple[str, str]) -> None:
    found = data_beside(ledger)
    spent = "" if view is None else f"; it has spent {spent_words(view.events, delta)}"
    if found is None and view is not None:
        raise InvalidArgumentError(
            f"nobody can say on which data the ledger's steps ran: {_data_file(ledger).name} is not beside it{spent}",
            where=WHERE,
            cure="Name a ledger that hushgrad train began, or a new file",
        )
    if found is not None and found[1] != own[1]:
        raise DatasetError(
            f"the ledger is one of other data ({printable(found[0])}) than this run's ({printable(own[0])}){spent}",
            where=WHERE,
            cure="Name the ledger of these data, or a new file: other records are another account",
        )


def _require_same_unit(view: LedgerView, config: RunConfig, task: Task, privacy: Privacy) -> None:
    plan = privacy.plan(config.batch_size, task.population, config.epochs, 1.0, task.people)
    unit, told = view.contract.unit, spent_words(view.events, privacy.delta)
    if plan.sampling.unit != unit:
        raise ContractChangedError(
            f"its ε is for {unit}, and this run's would be for {plan.sampling.unit}; it has spent {told}",
            where=WHERE,
            cure="Give --person as in its runs, or begin a new ledger",
        )
    relations = [adjacency_of(event for event, _ in events) for events in (view.events, plan.composition())]
    if view.events and relations[0] != relations[1]:
        raise AccountingError(
            f"its ε holds under {relations[0]} neighbours, and this run's under {relations[1]} neighbours: one ε "
            f"cannot hold for both; it has spent {told}",
            where=WHERE,
            cure="Give --sampling as in its runs, or begin a new ledger",
        )


def _require_room(events: Composition, ledger: Path, privacy: Privacy) -> None:
    limits = (("target ε", privacy.target_epsilon), ("budget max_epsilon", privacy.max_epsilon))
    spent = epsilon(events, privacy.delta)
    for name, most in limits:
        if most is not None and float(round_up(spent)) >= most:  # nothing is left that could be seen
            raise BudgetExhaustedError(
                f"the account in {printable(ledger.name)} has spent {spent_words(events, privacy.delta)}, and the "
                f"{name} of the whole account is {most:g}",
                where=WHERE,
                cure="Give a larger one, which all runs in the account then cost together; what was spent stays spent",
            )
