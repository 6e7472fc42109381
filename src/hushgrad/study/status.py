"""What the runs in a folder have spent on the same data, each and all together.

A run's data are told by the SHA-256 in its provenance.json, which stays in the run's folder. A ledger whose data nobody
can tell counts with every data set: less would be a guess. A copy of a ledger that lies beside it counts once, and so
does one that several runs share.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hushgrad.accounting.composition import finding_of
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.view import LedgerView, read_ledger, view_when
from hushgrad.errors import HushgradError, InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.account import FILE as ACCOUNT
from hushgrad.study.account import OWN, own_part, own_steps
from hushgrad.study.directory import RunDirectory
from hushgrad.study.provenance import data_of, read_provenance
from hushgrad.study.shared_ledger import data_beside
from hushgrad.study.summary_file import read_summary
from hushgrad.study.sweep.choosing import all_together

UNKNOWN = "not known"


@dataclass(frozen=True, slots=True)
class Spent:
    """What one run has spent.

    Attributes:
        place: its folder, below the one that was asked for.
        data: the name of its data; `key` tells them from others, None where they are not known.
        status: "completed", "interrupted", "running", "begun", "no run" (a ledger alone) or "unreadable".
        steps: of training and by its ledger; None for a run without privacy.
        epsilon: of its steps alone; infinite without privacy or where the ledger cannot be read.
        ledger: what its ledger says; None where there is none, or none that can be read.
        path: where that lies.
        phase: the name of the run's part of a ledger that several runs share; None where the ledger is its own.
    """

    place: str
    data: str
    key: str | None
    status: str
    began: str | None
    steps: int | None
    epsilon: float
    ledger: LedgerView | None
    path: Path | None = None
    phase: str | None = None

    @property
    def shared(self) -> bool:
        """Whether the run is a part of a shared ledger."""
        return self.phase is not None

    @property
    def records(self) -> int:
        """How many records its ledger has."""
        return 0 if self.ledger is None else self.ledger.anchor.seq + 1

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values, without what was charged."""
        names = ("place", "data", "status", "began", "steps")
        epsilon = "inf" if math.isinf(self.epsilon) else self.epsilon
        shared = str(self.path) if self.shared else None
        return {**{name: getattr(self, name) for name in names}, "epsilon": epsilon, "shared_ledger": shared}


@dataclass(frozen=True, slots=True)
class DataSet:
    """The runs on one data set.

    Attributes:
        name: of the data.
        runs: those on it, and those whose data are not known.
        private: ε of all their ledgers together; infinite where none holds for all.
        ordinary: how many runs had no privacy at all, or a ledger that cannot be read.
        ledgers: how many ledgers the others were charged in.
    """

    name: str
    runs: list[Spent] = field(default_factory=list)
    private: float = 0.0
    ordinary: int = 0
    ledgers: int = 0

    def as_json(self) -> dict[str, Any]:
        """Return it as JSON values."""
        together = "inf" if math.isinf(self.private) else self.private
        runs = [run.as_json() for run in self.runs]
        return {"data": self.name, "epsilon_together": together, "without_privacy": self.ordinary, "runs": runs}


def status_of(folder: Path, delta: float) -> list[DataSet]:
    """Return what was spent on each data set by the runs in `folder`, itself one or not, at `delta`.

    Guarantee: the ε of a data set is that of all releases in all ledgers on it, each counted once.

    Raises InvalidArgumentError where there is no run and no ledger.
    """
    found = _of_runs(_places(folder), folder, delta)
    if not found:
        raise InvalidArgumentError(
            "the folder holds no run and no ledger", where=printable(str(folder)), cure="Name the folder of the runs"
        )
    names: dict[str | None, str] = {run.key: run.data for run in found if run.key is not None} or {None: UNKNOWN}
    return [_data_set(name, [run for run in found if run.key in (key, None)], delta) for key, name in names.items()]


def beside(run: Path, delta: float) -> DataSet | None:
    """Return the runs on the same data in the folders beside a run's, itself included; None where it is alone."""
    place = run.resolve()
    folder = place.parent
    key = _key_of(place)
    if key is None:
        return None
    others = sorted(path.parent for path in folder.glob("*/provenance.json"))
    # Ledgers of other data are not read: of many runs each takes its time.
    found = _of_runs([other for other in others if _key_of(other) == key], folder, delta)
    runs = [one for one in found if one.key == key]
    own = next((one for one in runs if folder / one.place == place), None)
    return _data_set(own.data, runs, delta) if own is not None and len(runs) > 1 else None


def _data_set(name: str, runs: list[Spent], delta: float) -> DataSet:
    accounts = {run.path: run.ledger.events for run in runs if run.ledger is not None}
    together = all_together(accounts.values(), delta)
    return DataSet(name, runs, together, sum(run.ledger is None for run in runs), len(accounts))


def _places(folder: Path) -> list[Path]:
    """Return the folders that hold a run or a ledger, in the order of their names."""
    ledgers = {path.parent for name in (OWN, ACCOUNT) for path in folder.rglob(name)}
    runs = {path.parent for path in folder.rglob("summary.json") if (path.parent / "config.json").exists()}
    return sorted(ledgers | runs)


def _of_runs(places: Iterable[Path], folder: Path, delta: float) -> list[Spent]:
    """Return what each run has spent; that of one whose own ledger others went on with ends where they begin."""
    found = _without_copies([_spent(place, folder, delta) for place in places], folder)
    joined = [(one.path, own_steps(one.ledger, one.phase).start) for one in found if one.shared and one.ledger]

    def alone(one: Spent) -> Spent:
        starts = [start for path, start in joined if path == one.path]
        if one.ledger is None or one.shared or not starts:
            return one
        return replace(one, steps=min(starts), epsilon=_alone(one.ledger, range(min(starts)), delta))

    return [alone(one) for one in found]


def _alone(ledger: LedgerView, steps: range, delta: float) -> float:
    """Return ε of these steps of a ledger; infinite where it holds a finding."""
    events = ledger.events if finding_of(ledger.events) is not None else own_part(ledger.events, steps)
    return guarantee(events, delta, contract=ledger.contract, conditions=ledger.conditions).epsilon


def _spent(place: Path, folder: Path, delta: float) -> Spent:
    name = printable(str(place.relative_to(folder))) if place != folder else "."
    directory = RunDirectory(place)
    try:
        known = read_provenance(directory.provenance) or {"started": None, "data": None}
        summary = read_summary(place) or {}
        data, key = _data_of(known, summary)
        status = str(summary.get("status") or ("begun" if directory.config.exists() else "no run"))
        account = directory.account
        if status == "no run":
            data, key = data_beside(account.ledger) or (data, key)
        if not account.ledger.exists():
            return Spent(name, data, key, status, known["started"], None, math.inf, None)
        view = read_ledger(account.ledger)
    except HushgradError:
        return Spent(name, UNKNOWN, None, "unreadable", None, None, math.inf, None)
    steps = own_steps(view, account.phase)
    alone, path = _alone(view, steps, delta), account.ledger.resolve()
    return Spent(name, data, key, status, known["started"], len(steps), alone, view, path, account.phase)


def _key_of(place: Path) -> str | None:
    """Return what tells the data of a run from others; None where they are not known."""
    try:
        known = read_provenance(RunDirectory(place).provenance)
        return None if known is None else _data_of(known, read_summary(place) or {})[1]
    except HushgradError:
        return None


def _data_of(known: dict[str, Any], summary: dict[str, Any]) -> tuple[str, str | None]:
    task = summary.get("task")
    is_known = known["data"] is not None or (known["started"] is not None and task is not None)
    return data_of(known["data"], str(task)) if is_known else (UNKNOWN, None)


def _without_copies(found: list[Spent], folder: Path) -> list[Spent]:
    """Return each ledger once: one of which another holds all, the last record included, is a copy of it.

    Runs that share a ledger all stay; where they are there, the ledger's own place does not.
    """
    kept: list[Spent] = []
    for one in sorted(found, key=lambda run: (-run.records, not run.shared)):  # the longest first
        if not any(_is_copy(one, other, folder) for other in kept):
            kept.append(one)
    return [one for one in found if one in kept]


def _is_copy(one: Spent, other: Spent, folder: Path) -> bool:
    if one.ledger is None or other.ledger is None or one.ledger.run != other.ledger.run:
        return False
    if one.path == other.path:
        return one.status == "no run"
    return view_when(RunDirectory(folder / other.place).ledger, one.ledger.anchor) is not None
