"""All that a report says about a run, recomputed from the run's files: ledger, metrics, model, summary.

What was asked for (settings, versions) comes from summary.json. Every figure of privacy comes from the ledger, every
accuracy from the metrics, the number of parameters from the model.
"""

from __future__ import annotations

import hashlib
import json
import math
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hushgrad.accounting.accountants import ACCOUNTANTS, epsilon_bounds
from hushgrad.accounting.composition import Composition
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger import OBSERVED, LedgerView, read_ledger
from hushgrad.accounting.risk import gaussian_mu, membership_advantage, true_positive_rate, zero_concentrated
from hushgrad.auditing.audit import recomputed
from hushgrad.errors import AccountingError, InvalidArgumentError
from hushgrad.report.assumptions import assumptions_of
from hushgrad.study.sweep.folder import read_summary
from hushgrad.study.sweep.results import read_measurements

AUDIT = "audit.json"
DELTAS = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
FALSE_POSITIVE_RATES = (0.001, 0.01, 0.1)
RELATIVE_DIFFERENCE = 1e-6
SETTINGS = (
    "task", "description", "target", "vocabulary", "vocabulary_epsilon",
    "vocabulary_noise_multiplier", "classes", "model", "hidden_sizes", "activation", "optimizer",
    "learning_rate", "momentum", "augmentations", "average_decay", "epochs", "expected_batch_size",
    "max_physical_batch_size", "loss_reduction", "max_grad_norm", "noise_multiplier", "sampling_rate",
    "target_epsilon", "delta", "seed", "device",
    "training_examples", "test_examples",
)  # fmt: skip


def run_facts(folder: Path, *, name: str | None = None, uncovered: bool = False) -> dict[str, Any]:
    """Return the facts of the run in `folder` as JSON values. An infinite number is the string "inf".

    `name` is how the report calls the run (None: its folder's name). `uncovered` adds what ε does not cover of the
    curves: training loss and training accuracy. Raises InvalidArgumentError where the folder holds no run and
    LedgerError for a damaged ledger.
    """
    summary = read_summary(folder)
    if summary is None:
        raise InvalidArgumentError("the folder holds no run: summary.json is missing")
    ledger = read_ledger(folder / "ledger.jsonl") if (folder / "ledger.jsonl").exists() else None
    measurements = read_measurements(folder)
    facts: dict[str, Any] = {
        "kind": "run",
        "name": name if name is not None else folder.name,
        "status": summary["status"],
        "settings": {key: summary.get(key) for key in SETTINGS},
        "versions": summary.get("versions", {}),
        "privacy": privacy_facts(ledger, summary.get("delta") or 1e-5),
        "steps": {"planned": summary.get("planned_steps"), "executed": _steps(ledger, summary, measurements)},
        "result": _result(summary, measurements),
        "subgroups": _subgroups(summary),
        "outside_the_guarantee": list(summary.get("outside_the_guarantee", [])),
        "curves": _curves(measurements, uncovered),
        "files": {path.name: file_digest(path) for path in _files(folder)},
        "parameters": _parameters(folder / "model.safetensors"),
    }
    facts["assumptions"] = assumptions_of(ledger, summary)
    facts["audit"], audit_agrees = audit_facts(
        folder / AUDIT, ledger, besides=summary.get("vocabulary_noise_multiplier")
    )
    facts["agreement"] = agreement(facts, summary, ledger, measurements) + audit_agrees
    return dict(finite(facts))


def privacy_facts(ledger: LedgerView | None, delta: float) -> dict[str, Any]:
    """Return everything that is computed from a ledger; for a run without one, that nothing is guaranteed."""
    if ledger is None:
        return {"private": False, "epsilon": math.inf, "delta": None, "statement": None}
    events: Composition = ledger.events
    held = guarantee(events, delta, contract=ledger.contract, conditions=ledger.conditions)
    facts: dict[str, Any] = {
        "private": held.private,
        "epsilon": held.epsilon,
        "delta": delta,
        "statement": str(held),
        "conditions": [condition.as_note() for condition in held.conditions],
        "unit": held.unit,
        "adjacency": held.adjacency,
        "sampling": held.sampling,
        "accountant": held.accountant,
        "numerics": held.numerics,
        "numerical_error": held.numerical_error,
        "noise_source": ledger.contract.noise_source,
        "sampling_was": ledger.contract.sampling,
        "population": ledger.contract.population,
        "expected_batch_size": ledger.contract.expected_batch_size,
        "max_grad_norm": ledger.contract.max_grad_norm,
        "loss_reduction": ledger.contract.loss_reduction,
        "noise_multipliers": sorted({event.noise_multiplier for event, _ in events}),
        "releases": [{**event.to_json(), "count": count} for event, count in events],
        "ledger_end": {"records": ledger.anchor.seq + 1, "hash": ledger.anchor.hash},
    }
    if math.isfinite(held.epsilon) and held.epsilon > 0:
        facts |= _figures(events, delta)
    return facts


def audit_facts(
    path: Path, ledger: LedgerView | None, *, besides: float | None
) -> tuple[dict[str, Any] | None, list[dict[str, Any]]]:
    """Return the audit in `audit.json`, its bounds and claims computed anew, and whether the files agree.

    `besides` is the noise multiplier of what was released before training, which is not what was audited.

    None and nothing where there is no such file. Raises `InvalidArgumentError` where it is damaged.
    """
    try:
        stored = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None, []
    except ValueError as error:
        raise InvalidArgumentError(f"{AUDIT} is damaged; audit anew") from error
    audit = recomputed(stored)
    fresh = audit.as_json()
    agrees = [{"what": f"bounds in {AUDIT} and from what it observed", "held": same(stored, fresh)}]
    if ledger is not None:
        audited = sorted({event.noise_multiplier for event, _ in audit.releases})
        charged = sorted({event.noise_multiplier for event, _ in ledger.events} - {besides})
        agrees.append({"what": f"σ in {AUDIT} and in the ledger", "held": same(audited, charged)})
    return fresh, agrees


def _figures(events: Composition, delta: float) -> dict[str, Any]:
    """Return ε at several δ, by other accountants, and what an attacker can achieve at most."""
    deltas = sorted({*DELTAS, delta}, reverse=True)
    return {
        "epsilon_at": [{"delta": value, "epsilon": epsilon_bounds(events, value).upper} for value in deltas],
        "other_accountants": {name: _by(events, delta, name) for name in ACCOUNTANTS},
        "mu": gaussian_mu(events),
        "rho": zero_concentrated(events),
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


def _steps(ledger: LedgerView | None, summary: Mapping[str, Any], measurements: list[dict[str, Any]]) -> int | None:
    """Return the steps of training; a vocabulary that was counted with noise is one more in the ledger."""
    if ledger is not None:
        return ledger.steps - (summary.get("vocabulary_noise_multiplier") is not None)
    return measurements[-1]["step"] if measurements else None


def _result(summary: Mapping[str, Any], measurements: list[dict[str, Any]]) -> dict[str, Any]:
    """Return the last test accuracy with its standard error from the number of test records."""
    tested = [row["test_accuracy"] for row in measurements if row["test_accuracy"] is not None]
    accuracy = tested[-1] if tested else summary.get("test_accuracy")
    count = summary.get("test_examples")
    error = math.sqrt(accuracy * (1 - accuracy) / count) if accuracy is not None and count else None
    return {"test_accuracy": accuracy, "standard_error": error, "test_examples": count}


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
    names = ("ledger.jsonl", "model.safetensors", "summary.json", "metrics.jsonl", AUDIT)
    return [folder / name for name in names if (folder / name).is_file()]


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _parameters(path: Path) -> int | None:
    """Return how many numbers the model file holds, from its header."""
    if not path.is_file():
        return None
    with path.open("rb") as stream:
        (length,) = struct.unpack("<Q", stream.read(8))
        if not 0 < length <= 100_000_000:
            raise InvalidArgumentError("model.safetensors is damaged: its header has no possible length")
        header = json.loads(stream.read(length))
    return sum(int(math.prod(tensor["shape"])) for name, tensor in header.items() if name != "__metadata__")


def agreement(
    facts: Mapping[str, Any],
    summary: Mapping[str, Any],
    ledger: LedgerView | None,
    measurements: list[dict[str, Any]],
) -> list[dict[str, Any]]:
    """Return, for each figure that the run wrote twice, whether its files agree on it."""
    pairs: list[tuple[str, Any, Any]] = [
        ("ε in summary.json and from the ledger", summary.get("epsilon"), facts["privacy"]["epsilon"]),
    ]
    if ledger is not None:
        noises = {summary["noise_multiplier"], summary.get("vocabulary_noise_multiplier")} - {None}
        executed = facts["steps"]["executed"]
        pairs += [
            ("steps in summary.json and in the ledger", summary.get("steps"), executed),
            ("the statement in summary.json and from the ledger", summary["guarantee"], facts["privacy"]["statement"]),
            (
                "σ in summary.json and in the ledger",
                sorted(noises),
                facts["privacy"]["noise_multipliers"],
            ),
        ]
        if ledger.contract.sampling == OBSERVED and summary.get("training_examples") is not None:
            pairs.append(
                ("N in summary.json and in the ledger", summary["training_examples"], ledger.contract.population)
            )
    if measurements:
        last = measurements[-1]
        pairs += [
            ("steps in summary.json and in metrics.jsonl", summary.get("steps"), last["step"]),
            ("test accuracy in summary.json and in metrics.jsonl", summary["test_accuracy"], last["test_accuracy"]),
        ]
        if last["epsilon"] is not None:
            pairs.append(("ε in metrics.jsonl and from the ledger", last["epsilon"], facts["privacy"]["epsilon"]))
    if facts["parameters"] is not None and summary.get("parameters") is not None and ledger is not None:
        pairs.append(("parameters in summary.json and in the model", summary["parameters"], facts["parameters"]))
    return [{"what": what, "held": same(left, right)} for what, left, right in pairs]


def same(left: Any, right: Any) -> bool:
    """Are two values the same, numbers to six digits? "inf" is infinity."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    numbers = [math.inf if value == "inf" else value for value in (left, right)]
    if all(isinstance(value, int | float) for value in numbers):
        return numbers[0] == numbers[1] or math.isclose(*numbers, rel_tol=RELATIVE_DIFFERENCE, abs_tol=1e-12)
    return bool(left == right)


def finite(value: Any) -> Any:
    """Return JSON values: infinity and NaN as strings, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value
