"""All that a report says about a run, recomputed from the run's files: ledger, metrics, model, summary.

What was asked for (settings, versions) comes from summary.json. Every figure of privacy comes from the ledger, every
accuracy from the metrics, the number of parameters from the model.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hushgrad.accounting.accountants import ACCOUNTANTS, epsilon_bounds
from hushgrad.accounting.composition import Composition, steps_of
from hushgrad.accounting.guarantee import Guarantee, as_sentence, delta_text, guarantee
from hushgrad.accounting.ledger.view import LedgerView
from hushgrad.accounting.meaning import in_plain_words
from hushgrad.accounting.risk import gaussian_mu, membership_advantage, true_positive_rate, zero_concentrated
from hushgrad.checks.auditing.audit import recomputed
from hushgrad.errors import AccountingError, InvalidArgumentError
from hushgrad.printable import printable
from hushgrad.study.configuration import DEFAULT_DELTA
from hushgrad.study.directory import RunDirectory
from hushgrad.study.provenance import file_digest
from hushgrad.study.report.agreement import agreement, largest_epsilon, notices
from hushgrad.study.report.assumptions import assumptions_of
from hushgrad.study.report.comparison import Comparison
from hushgrad.study.report.document import plain, up
from hushgrad.study.report.earlier import earlier_claims
from hushgrad.study.report.origin import monitor_facts, provenance_facts
from hushgrad.study.report.result import result_facts, result_notices
from hushgrad.study.report.run_files import LEDGER, METRICS, MODEL, SUMMARY, RunFiles
from hushgrad.study.report.statements import beyond, held_by
from hushgrad.study.report.values import finite, same

AUDIT = "audit.json"
MOST_NAMED = 10
DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
SETTINGS = (
    "task", "description", "target", "vocabulary", "vocabulary_epsilon",
    "vocabulary_noise_multiplier", "classes", "class_weights", "class_weights_epsilon", "weights_of_classes",
    "class_counts_noise_multiplier", "model", "trained_parameters", "lora_rank", "depth", "width", "hidden_sizes",
    "activation", "optimizer",
    "learning_rate", "momentum", "augmentations", "average_decay", "epochs", "expected_batch_size",
    "max_physical_batch_size", "loss_reduction", "clipping", "max_grad_norm", "noise", "noise_multiplier",
    "sampling_name", "max_batch_size", "sampling_rate", "target_epsilon", "delta", "seed", "device",
    "training_examples", "training_people", "test_examples", "person", "records_per_person",
    "schema_signed_by",
)  # fmt: skip


def run_facts(
    folder: Path,
    *,
    name: str | None = None,
    uncovered: bool = False,
    digest: bool = False,
    replaces: Path | None = None,
) -> dict[str, Any]:
    """Return the facts of the run in `folder` as JSON values. An infinite number is the string "inf".

    `name` is how the report calls the run (None: its folder's name). `uncovered` adds what ε does not cover of the
    curves: training loss and training accuracy; `digest` adds that of the data file, which ε does not cover either. An
    earlier report in the folder `replaces` is compared as well.

    Guarantee: where files contradict each other, every contradiction is named, ε is the largest that any of them says
    and nothing is called private.

    Raises InvalidArgumentError where the folder holds no run and LedgerError for a damaged ledger.
    """
    files = RunFiles.read(folder)
    summary = _summary(files)
    delta = files.delta(DEFAULT_DELTA)
    audit, audit_rows = audit_facts(folder / AUDIT, files)
    largest = largest_epsilon(files, delta)
    said, stated = ([], []) if replaces is None else earlier_claims(replaces, files, largest)
    rows = [*agreement(files, delta), *said]
    wrong = sum(not row.held for row in rows)
    facts: dict[str, Any] = {
        "kind": "run",
        "name": name if name is not None else folder.name,
        "status": summary["status"],
        "notices": [*notices(files), *result_notices(files)],
        "settings": {key: summary.get(key) for key in SETTINGS},
        "versions": summary.get("versions", {}),
        "provenance": provenance_facts(files, digest=digest),
        "monitors": monitor_facts(files),
        "privacy": doubted(files, max([largest, *stated]), delta) if wrong else privacy_facts(files, delta),
        "steps": {"planned": summary.get("planned_steps"), "executed": _steps(files)},
        "result": result_facts(files),
        "subgroups": _subgroups(summary),
        "outside_the_guarantee": list(summary.get("outside_the_guarantee", [])),
        "curves": _curves(files.measurements, uncovered),
        "ledger_file": RunDirectory(folder).ledger.name,
        "files": {path.name: file_digest(path) for path in _files(folder)},
        "parameters": None if files.model is None else files.model.parameters,
        "assumptions": assumptions_of(files, contradictions=wrong),
        "audit": audit,
        "agreement": [row.as_json() for row in (*rows, *audit_rows)],
    }
    return dict(finite(facts))


def _summary(files: RunFiles) -> Mapping[str, Any]:
    """Return the summary. Without one there is no run to report on; the error says what was spent all the same."""
    if files.summary is not None:
        return files.summary
    if files.ledger is None:
        runs = sorted(path.parent.name for path in files.folder.glob(f"*/{SUMMARY}"))
        inside = ", ".join(printable(name) for name in runs[:MOST_NAMED]) + (", …" if len(runs) > MOST_NAMED else "")
        raise InvalidArgumentError(
            "the file is missing, so the folder holds no run",
            where=SUMMARY,
            cure=f"Choose one of the folders of runs in it: {inside}" if runs else "Choose the folder of a run",
        )
    spent = held_by(files.ledger.events, DEFAULT_DELTA, files.ledger.contract).epsilon
    raise InvalidArgumentError(
        f"the file is missing, and {LEDGER} holds {files.ledger.steps} steps, ε = {up(spent)} at δ = "
        f"{delta_text(DEFAULT_DELTA)}: the run was stopped before its first epoch ended, or the summary was removed. "
        f"What was spent stays spent",
        where=SUMMARY,
        cure="Run hushgrad epsilon --ledger, which computes what was spent at any δ",
    )


def privacy_facts(files: RunFiles, delta: float) -> dict[str, Any]:
    """Return everything that is computed from a ledger; for a run without one, that nothing is guaranteed."""
    ledger = files.ledger
    if ledger is None:
        return {"private": False, "epsilon": math.inf, "delta": None, "statement": None}
    held = guarantee(ledger.events, delta, contract=ledger.contract, conditions=ledger.conditions)
    facts: dict[str, Any] = {
        "private": held.private,
        "epsilon": held.epsilon,
        "delta": delta,
        "statement": str(held),
        "conditions": [condition.as_note() for condition in held.conditions],
        "in_plain_words": list(in_plain_words(held, ledger.events)),
        "beyond_ledger": _beyond_ledger(files, held),
        **_charged(ledger, held),
    }
    if math.isfinite(held.epsilon) and held.epsilon > 0:
        facts |= _figures(ledger.events, delta)
    return facts


def doubted(files: RunFiles, largest: float, delta: float) -> dict[str, Any]:
    """Return facts of privacy for files that contradict each other: the largest ε, and no other figure from them."""
    told = "infinite" if math.isinf(largest) else up(largest)
    statement = (
        f"NOTHING IS GUARANTEED while the files of this run contradict each other. The largest epsilon that they give "
        f"is {told}, at delta {delta_text(delta)}; find out which of them was changed before you rely on any."
    )
    facts = {"private": False, "epsilon": largest, "delta": delta, "statement": statement}
    facts |= {"conditions": [], "beyond_ledger": ""}
    ledger = files.ledger
    return facts if ledger is None else facts | _charged(ledger, held_by(ledger.events, delta, ledger.contract))


def _charged(ledger: LedgerView, held: Guarantee) -> dict[str, Any]:
    """Return what a ledger says was done, as JSON values."""
    contract = ledger.contract
    return {
        "unit": held.unit,
        "adjacency": held.adjacency,
        "sampling": held.sampling,
        "accountant": held.accountant,
        "numerics": held.numerics,
        "numerical_error": held.numerical_error,
        "noise_source": contract.noise_source,
        "sampling_was": contract.sampling,
        "population": contract.population,
        "expected_batch_size": contract.expected_batch_size,
        "clip_rule": contract.clipping,
        "max_grad_norm": contract.max_grad_norm,
        "loss_reduction": contract.loss_reduction,
        **({} if contract.rounding is None else {"rounding": asdict(contract.rounding)}),
        **({} if contract.strategy is None else {"strategy": contract.strategy}),
        "noise_multipliers": sorted({event.noise_multiplier for event, _ in steps_of(ledger.events)}),
        "releases": [{**event.to_json(), "count": count} for event, count in ledger.events],
        "ledger_end": {"records": ledger.anchor.seq + 1, "hash": ledger.anchor.hash, "run": ledger.run},
    }


def _beyond_ledger(files: RunFiles, held: Guarantee) -> str:
    """Return what the run's own statement says beyond its ledger: conditions that only the session knew."""
    further = beyond(files.said("guarantee"), str(replace(held, conditions=()))) or ""
    for condition in held.conditions:
        further = further.replace(as_sentence(condition.sentence), "")
    return further.strip()


def audit_facts(path: Path, files: RunFiles) -> tuple[dict[str, Any] | None, list[Comparison]]:
    """Return the audit in `audit.json`, its bounds and claims computed anew, and whether the files agree.

    None and nothing where there is no such file. Raises `InvalidArgumentError` where it is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, []
    except ValueError as error:
        raise InvalidArgumentError("the file is damaged", where=AUDIT, cure="Audit anew") from error
    audit = recomputed(stored)
    fresh = audit.as_json()
    rows = [Comparison(f"bounds in {AUDIT} and from what it observed", same(stored, fresh), {})]
    if files.ledger is not None:
        audited = sorted({event.noise_multiplier for event, _ in audit.releases})
        charged = files.noises(files.ledger.events)
        said = {AUDIT: plain(audited), LEDGER: plain(charged)}
        rows.append(Comparison(f"σ in {AUDIT} and in the ledger", same(audited, charged), said))
    return fresh, rows


def _figures(events: Composition, delta: float) -> dict[str, Any]:
    """Return ε at several δ, by other accountants, and what an attacker can achieve at most."""
    deltas = sorted({*DELTAS, delta}, reverse=True)
    return {
        "epsilon_at": [{"delta": value, "epsilon": epsilon_bounds(events, value).upper} for value in deltas],
        "other_accountants": {name: _by(events, delta, name) for name in ACCOUNTANTS},
        "mu": _known(gaussian_mu, events),
        "rho": _known(zero_concentrated, events),
        "attack": {
            "advantage": membership_advantage(events),
            "true_positive_rate_at": [
                {"false_positive_rate": rate, "true_positive_rate": true_positive_rate(events, rate)}
                for rate in FALSE_POSITIVE_RATES
            ],
        },
    }


def _by(events: Composition, delta: float, accountant: str) -> float | None:
    """Return ε by an accountant, None where δ lies outside its domain."""
    try:
        return epsilon_bounds(events, delta, accountant).upper
    except AccountingError:
        return None


def _known(figure: Callable[[Composition], float], events: Composition) -> float | None:
    """Return a figure, None where it is not computed for this kind of sampling."""
    try:
        return figure(events)
    except AccountingError:
        return None


def _steps(files: RunFiles) -> int | None:
    """Return the steps of training, the most that any file says: the ledger's, where the files agree."""
    said = [] if files.ledger is None else [files.steps(files.ledger)]
    said += [row["step"] for row in files.measurements]
    return max(said, default=None)


def _subgroups(summary: Mapping[str, Any]) -> dict[str, Any] | None:
    """Return accuracy by subgroup of the test records, from the counts that the run wrote; None without a column."""
    found = summary.get("subgroups")
    if found is None:
        return None
    groups = [{**group, "accuracy": group["right"] / group["count"]} for group in found["groups"] if group["count"]]
    accuracies = [group["accuracy"] for group in groups]
    return {
        "column": found["column"],
        "groups": groups,
        "gap": max(accuracies) - min(accuracies) if accuracies else None,
    }


def _curves(measurements: list[dict[str, Any]], uncovered: bool) -> list[dict[str, Any]]:
    names = ["step", "test_accuracy", "epsilon", *(("loss", "train_accuracy") if uncovered else ())]
    return [{name: row[name] for name in names} for row in measurements]


def _files(folder: Path) -> list[Path]:
    paths = [RunDirectory(folder).ledger, *(folder / name for name in (MODEL, SUMMARY, METRICS, AUDIT))]
    return [path for path in paths if path.is_file()]
