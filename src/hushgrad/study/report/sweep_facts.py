"""All that a report says about a sweep, recomputed from the folders of its runs."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hushgrad.accounting.composition import Composition, releases_of
from hushgrad.study.configuration import DEFAULT_DELTA
from hushgrad.study.provenance import file_digest
from hushgrad.study.report.agreement import agreement, largest_epsilon
from hushgrad.study.report.comparison import Comparison
from hushgrad.study.report.run_files import LEDGER, RunFiles, anchor_in
from hushgrad.study.report.statements import held_by
from hushgrad.study.report.values import finite
from hushgrad.study.sweep.choosing import all_together, drawn_number
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import ORDINARY
from hushgrad.study.sweep.results import delta_of
from hushgrad.study.sweep.table import Row, gather, read_rows

SETTINGS = (
    "expected_batch_size", "epochs", "optimizer", "learning_rate", "momentum", "max_grad_norm", "augmentations",
    "average_decay",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attempt:
    """The folder of a finished run or of an attempt that was given up, what its files say, and whether they agree.

    `epsilon` is what the ledger gives, and the largest that any file says where they contradict each other.
    """

    place: str
    files: RunFiles
    compared: list[Comparison]
    epsilon: float

    @classmethod
    def read(cls, folder: SweepFolder, path: Path, delta: float) -> Attempt:
        """Read and compare the files in `path`, a folder inside the sweep's."""
        files = RunFiles.read(path)
        delta = files.delta(delta)
        compared = agreement(files, delta)
        epsilon = _charged(files, delta)
        if not all(row.held for row in compared):
            epsilon = largest_epsilon(files, delta)
        return cls(str(path.relative_to(folder.path)), files, compared, epsilon)

    @property
    def agrees(self) -> bool:
        """Whether its files say the same."""
        return all(row.held for row in self.compared)

    def is_understated(self, delta: float) -> bool:
        """Is the run's own ledger missing, or does another file say a larger ε than it does?"""
        missing = self.files.ledger is None or (anchor_in(self.files.summary) is not None and self.files.known is None)
        if self.agrees or missing:
            return not self.agrees
        return self.epsilon > _charged(self.files, self.files.delta(delta))


def sweep_facts(path: Path, *, name: str | None = None, uncovered: bool = False) -> dict[str, Any]:
    """Return the facts of the sweep in `path` as JSON values; see `run_facts` for `name` and `uncovered`.

    Guarantee: where the files of any run or attempt contradict each other, each contradiction is named with the folder,
    the run's ε is the largest that any of its files says, and a total that may be too small is infinite.
    """
    folder = SweepFolder.existing(path)
    plan = folder.plan()
    rows = read_rows(folder, plan)
    delta = delta_of(rows)
    done = {
        row.name: Attempt.read(folder, folder.finished(row.name), row.delta or delta)
        for row in rows
        if row.status == "completed"
    }
    given_up = [Attempt.read(folder, place, delta) for place in folder.attempts_abandoned()]
    attempts = [*done.values(), *given_up]
    rows = [
        replace(row, epsilon=done[row.name].epsilon) if row.name in done and not done[row.name].agrees else row
        for row in rows
    ]
    facts = {
        "kind": "sweep",
        "name": name if name is not None else plan.name,
        "plan": plan.fingerprint(),
        "delta": delta,
        "notices": _notices(rows),
        "runs": [_run(folder, row, done.get(row.name)) for row in rows],
        "over_seeds": [asdict(group) for group in gather(rows)],
        "choosing": choosing(rows, done, given_up, delta),
        "curves": [
            {"series": row.series, "aim": row.aim, "points": _points(done[row.name].files.measurements, uncovered)}
            for row in rows
            if row.name in done
        ],
        "outside_the_guarantee": _outside(rows, done),
        "agreement": [
            {**row.as_json(), "what": f"{attempt.place}: {row.what}", "about": f"{attempt.place}: {row.about}"}
            for attempt in attempts
            for row in attempt.compared
        ],
    }
    return dict(finite(facts))


def _notices(rows: list[Row]) -> list[str]:
    """Return what a reader should know about runs that are missing."""
    counts = Counter(row.status for row in rows)
    failed, unfinished = counts["failed"], counts["waiting"] + counts["running"]
    found = [] if counts["completed"] else ["No run was completed, so there is nothing to call private"]
    if failed:
        found.append(f"{failed} of {len(rows)} runs failed; the sweep's own command tries them again")
    if unfinished:
        found.append(f"{unfinished} of {len(rows)} runs were not finished; the sweep's own command goes on with them")
    return found


def _charged(files: RunFiles, delta: float) -> float:
    """Return ε of what the ledger holds; infinity without one."""
    return math.inf if files.ledger is None else held_by(files.ledger.events, delta, files.ledger.contract).epsilon


def _run(folder: SweepFolder, row: Row, attempt: Attempt | None) -> dict[str, Any]:
    """Return a row of the table with ε recomputed. Of a failure only the kind is told: its message may hold data."""
    failure = folder.failure(row.name) if row.status == "failed" else None
    facts = {**asdict(row), "error": failure["kind"] if failure else None, "ledger": None, "ledger_epsilon": None}
    facts["settings"] = {}
    if attempt is None:
        return facts
    files, delta = attempt.files, attempt.files.delta(DEFAULT_DELTA)
    facts["settings"] = {key: files.said(key) for key in SETTINGS if files.said(key) is not None}
    facts["ledger_epsilon"] = _charged(files, delta)
    if files.ledger is not None:
        facts["ledger"] = file_digest(files.folder / LEDGER)
        private = held_by(files.ledger.events, delta, files.ledger.contract).private
        facts["private"] = private and attempt.agrees
    return facts


def choosing(rows: list[Row], done: dict[str, Attempt], given_up: list[Attempt], delta: float) -> dict[str, Any]:
    """Return what the sweep has cost as a whole, every attempt included, and what choosing its best run costs.

    To look at all runs and publish any of them costs as much as all runs together. `drawn_number` is what the choice
    would have cost if the number of runs had been drawn at random (geometric, with the same mean) before the sweep
    began, which it was not. Where a ledger says less than another file of its run, or where runs were charged under
    different neighbouring relations, the total is unknown: infinite.
    """
    ordinary = sum(row.aim == ORDINARY for row in rows if row.status == "completed")
    accounts: list[Composition] = []
    noiseless = 0
    understated = False
    for attempt in (*done.values(), *given_up):
        understated = understated or attempt.is_understated(delta)
        if attempt.files.ledger is None:
            continue
        events = attempt.files.ledger.events
        if any(event.noise_multiplier == 0 for event, _ in releases_of(events)):
            noiseless += 1
        else:
            accounts.append(events)
    total = math.inf if understated else all_together(accounts, delta)
    return {
        "private_attempts": len(accounts),
        "noiseless_attempts": noiseless,
        "ordinary_runs": ordinary,
        "abandoned_attempts": len(given_up),
        "delta": delta,
        "all_private_attempts": total,
        "everything": math.inf if noiseless or ordinary else total,
        "best": [_best(rows, done, label, delta) for label in dict.fromkeys(row.label for row in rows)],
    }


def _best(rows: list[Row], done: dict[str, Attempt], label: str, delta: float) -> dict[str, Any]:
    """Return a subject's most accurate private run and what choosing it would cost; nulls where there is none."""
    private = [row for row in rows if row.label == label and row.status == "completed" and _finite(row.epsilon)]
    best = max(private, key=lambda row: row.test_accuracy or 0.0, default=None)
    if best is None:
        return {"label": label, "runs": 0, "aim": None, "test_accuracy": None, "alone": None, "drawn_number": None}
    attempt = done[best.name]
    ledger = attempt.files.ledger
    return {
        "label": label,
        "runs": len(private),
        "aim": f"{best.aim}, seed {best.seed}",
        "test_accuracy": best.test_accuracy,
        "alone": best.epsilon,
        "drawn_number": drawn_number(ledger.events, delta, len(private))
        if ledger is not None and not attempt.is_understated(delta)
        else math.inf,
    }


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _points(measurements: list[dict[str, Any]], uncovered: bool) -> list[dict[str, Any]]:
    names = ("step", "test_accuracy", "epsilon", *(("loss",) if uncovered else ()))
    return [{name: line[name] for name in names} for line in measurements]


def _outside(rows: list[Row], done: dict[str, Attempt]) -> list[str]:
    """Return what the runs' guarantees leave out, each once."""
    found: dict[str, None] = {}
    for row in rows:
        if row.name in done and _finite(row.epsilon):
            found.update(dict.fromkeys(done[row.name].files.said("outside_the_guarantee") or []))
    return list(found)
