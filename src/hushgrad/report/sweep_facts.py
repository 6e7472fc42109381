"""All that a report says about a sweep, recomputed from the folders of its runs."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger import read_ledger
from hushgrad.accounting.selection import GEOMETRIC, selection_epsilon
from hushgrad.report.run_facts import file_digest, finite, same
from hushgrad.study.sweep.folder import SweepFolder, read_summary
from hushgrad.study.sweep.plan import ORDINARY
from hushgrad.study.sweep.results import delta_of, read_measurements
from hushgrad.study.sweep.table import Row, gather, read_rows

SETTINGS = (
    "expected_batch_size", "epochs", "optimizer", "learning_rate", "momentum", "max_grad_norm", "augmentations",
    "average_decay",
)  # fmt: skip


def sweep_facts(path: Path, *, name: str | None = None, uncovered: bool = False) -> dict[str, Any]:
    """Return the facts of the sweep in `path` as JSON values; see `run_facts` for `name` and `uncovered`."""
    folder = SweepFolder.existing(path)
    plan = folder.plan()
    rows = read_rows(folder, plan)
    delta = delta_of(rows)
    runs = [_run(folder, row, delta) for row in rows]
    facts = {
        "kind": "sweep",
        "name": name if name is not None else plan.name,
        "plan": plan.fingerprint(),
        "delta": delta,
        "runs": runs,
        "over_seeds": [asdict(group) for group in gather(rows)],
        "choosing": choosing(folder, rows, delta),
        "curves": [
            {"series": row.series, "aim": row.aim, "points": _points(folder.finished(row.name), uncovered)}
            for row in rows
            if row.status == "completed"
        ],
        "outside_the_guarantee": _outside(folder, rows),
        "agreement": [
            {
                "what": f"ε of {run['name']} in summary.json and from its ledger",
                "held": same(run["epsilon"], run["ledger_epsilon"]),
            }
            for run in runs
            if run["status"] == "completed"
        ],
    }
    return dict(finite(facts))


def _run(folder: SweepFolder, row: Row, delta: float) -> dict[str, Any]:
    """Return a row of the table with ε recomputed. Of a failure only the kind is told: its message may hold data."""
    failure = folder.failure(row.name) if row.status == "failed" else None
    facts = {**asdict(row), "error": failure["kind"] if failure else None, "ledger": None, "ledger_epsilon": None}
    facts["settings"] = {}
    if row.status != "completed":
        return facts
    summary = read_summary(folder.finished(row.name)) or {}
    facts["settings"] = {key: summary[key] for key in SETTINGS if summary.get(key) is not None}
    ledger = folder.finished(row.name) / "ledger.jsonl"
    if not ledger.exists():
        return {**facts, "ledger_epsilon": math.inf}
    view = read_ledger(ledger)
    held = guarantee(view.events, row.delta or delta, contract=view.contract, conditions=view.conditions)
    return {**facts, "ledger": file_digest(ledger), "ledger_epsilon": held.epsilon, "private": held.private}


def choosing(folder: SweepFolder, rows: list[Row], delta: float) -> dict[str, Any]:
    """Return what the sweep has cost as a whole, every attempt included, and what choosing its best run costs.

    Publishing any of it after looking at all of it costs what all runs cost together. `drawn_number` is what the choice
    would cost had the number of runs been drawn at random (geometric, with as many runs on average) before the sweep
    began, which it was not.
    """
    finished = [folder.finished(row.name) for row in rows if row.status == "completed"]
    ordinary = sum(row.aim == ORDINARY for row in rows if row.status == "completed")
    together: Composition = []
    noiseless = attempts = 0
    for place in (*finished, *folder.attempts_abandoned()):
        ledger = place / "ledger.jsonl"
        if not ledger.exists():
            continue
        events = read_ledger(ledger).events
        if any(event.noise_multiplier == 0 for event, _ in events):
            noiseless += 1
        else:
            attempts += 1
            together = [*together, *events]
    return {
        "private_attempts": attempts,
        "noiseless_attempts": noiseless,
        "ordinary_runs": ordinary,
        "abandoned_attempts": len(folder.attempts_abandoned()),
        "delta": delta,
        "all_private_attempts": epsilon(together, delta),
        "everything": math.inf if noiseless or ordinary else epsilon(together, delta),
        "best": [_best(folder, rows, label, delta) for label in dict.fromkeys(row.label for row in rows)],
    }


def _best(folder: SweepFolder, rows: list[Row], label: str, delta: float) -> dict[str, Any]:
    """Return a subject's most accurate private run and what choosing it would cost; nulls where there is none."""
    private = [row for row in rows if row.label == label and row.status == "completed" and _finite(row.epsilon)]
    best = max(private, key=lambda row: row.test_accuracy or 0.0, default=None)
    if best is None:
        return {"label": label, "runs": 0, "aim": None, "test_accuracy": None, "alone": None, "drawn_number": None}
    events = read_ledger(folder.finished(best.name) / "ledger.jsonl").events
    return {
        "label": label,
        "runs": len(private),
        "aim": f"{best.aim}, seed {best.seed}",
        "test_accuracy": best.test_accuracy,
        "alone": best.epsilon,
        "drawn_number": selection_epsilon(events, delta, len(private), GEOMETRIC),
    }


def _finite(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def _points(run_folder: Path, uncovered: bool) -> list[dict[str, Any]]:
    names = ("step", "test_accuracy", "epsilon", *(("loss",) if uncovered else ()))
    return [{name: line[name] for name in names} for line in read_measurements(run_folder)]


def _outside(folder: SweepFolder, rows: list[Row]) -> list[str]:
    """Return what the runs' guarantees leave out, each once."""
    found: dict[str, None] = {}
    for row in rows:
        if row.status == "completed" and _finite(row.epsilon):
            summary = read_summary(folder.finished(row.name)) or {}
            found.update(dict.fromkeys(summary.get("outside_the_guarantee", [])))
    return list(found)
