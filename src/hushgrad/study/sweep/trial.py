"""One run of the user's own function in a sweep.

    def train(trial: Trial) -> dict[str, float]:
        engine = PrivacyEngine(ledger=trial.ledger)
        ...
        return {"test_accuracy": 0.93}

The function says how accurate its model is. What the run cost is read from the ledger that it left, never from what the
function says.
"""

from __future__ import annotations

import importlib
import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hushgrad._version import __version__
from hushgrad.accounting.composition import steps_of
from hushgrad.accounting.guarantee import guarantee
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.arguments import real_number
from hushgrad.errors import ContractChangedError, InvalidArgumentError, LedgerError
from hushgrad.study.directory import RunDirectory, ledger_end


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """What the sweep asks of one call. `noise_multiplier` None asks for ordinary training, without privacy.

    `max_grad_norm`, `batch_size` and `learning_rate` are None where the sweep does not name them. A private call must
    give `ledger` to its `PrivacyEngine`; `folder` is its own to write to.
    """

    noise_multiplier: float | None
    delta: float
    seed: int
    ledger: Path
    folder: Path
    max_grad_norm: float | None = None
    batch_size: int | None = None
    learning_rate: float | None = None


TrialFunction = Callable[[Trial], Mapping[str, float]]


def find_function(target: str) -> TrialFunction:
    """Import and return "module:function". This runs the module's code."""
    module, _, name = target.partition(":")
    if not module or not name.isidentifier():
        raise InvalidArgumentError(
            "must be module:function", where="function", cure="Write it like mypackage.train:train"
        )
    try:
        found: TrialFunction | None = getattr(importlib.import_module(module), name, None)
    except ModuleNotFoundError as error:
        raise InvalidArgumentError(
            "it cannot be imported", where=f"module {module!r}", cure="Start hushgrad where Python finds the module"
        ) from error
    if found is None or not callable(found):
        raise InvalidArgumentError(
            f"it has no function {name!r}", where=f"module {module!r}", cure="Check the function's name"
        )
    return found


def run_trial(target: str, settings: Mapping[str, Any], out: Path) -> None:
    """Call the function and write the run's summary to the folder `out`.

    Guarantee: the epsilon of an own function's run is computed from its ledger. A private call that leaves no ledger,
    or one with other noise than was asked for, is an error.
    """
    directory = RunDirectory.claim(out)
    trial = Trial(**settings, ledger=directory.ledger, folder=directory.path)
    results = find_function(target)(trial)
    if not isinstance(results, Mapping) or "test_accuracy" not in results:
        raise InvalidArgumentError(
            f"must return a mapping with 'test_accuracy', got {type(results).__name__}",
            where=target,
            cure="Return {'test_accuracy': ...}",
        )
    numbers = {str(name): real_number(f"the result {name!r}", value) for name, value in results.items()}
    directory.write_summary(_summary(target, trial, numbers))


def _summary(target: str, trial: Trial, numbers: dict[str, float]) -> dict[str, Any]:
    settings = {name: value for name, value in asdict(trial).items() if name not in ("ledger", "folder")}
    summary: dict[str, Any] = {
        "status": "completed",
        "task": target,
        "model": target,
        **settings,
        "results": numbers,
        "test_accuracy": numbers["test_accuracy"],
        "versions": {"hushgrad": __version__},
    }
    if trial.noise_multiplier is None:
        if trial.ledger.exists():
            raise ContractChangedError(
                "it was asked for ordinary training, and left a ledger",
                where=target,
                cure="Train without privacy where trial.noise_multiplier is None",
            )
        said = "NOT PRIVATE: ordinary training, without clipping and without noise. No epsilon holds."
        outside = ("everything: this run is not private",)
        return {**summary, "private": False, "epsilon": math.inf, "guarantee": said, "outside_the_guarantee": outside}
    if not trial.ledger.exists():
        raise LedgerError(
            "it left no ledger, so its epsilon is unknown", where=target, cure="Pass ledger=trial.ledger to the engine"
        )
    ledger = read_ledger(trial.ledger)
    noises = {event.noise_multiplier for event, _ in steps_of(ledger.events)}
    if noises != {trial.noise_multiplier}:
        raise ContractChangedError(
            f"it was asked for the noise multiplier {trial.noise_multiplier:g}, and its ledger holds "
            f"{', '.join(f'{noise:g}' for noise in sorted(noises)) or 'no step'}",
            where=target,
            cure="Train with trial.noise_multiplier",
        )
    held = guarantee(ledger.events, trial.delta, contract=ledger.contract, conditions=ledger.conditions)
    return {
        **summary,
        "private": held.private,
        "epsilon": held.epsilon,
        "guarantee": str(held),
        "taken_on_trust": [condition.name for condition in held.conditions],
        "adjacency": held.adjacency,
        "sampling": held.sampling,
        "accountant": held.accountant,
        "ledger": ledger_end(ledger.anchor),
        "steps": ledger.steps,
        "outside_the_guarantee": (
            "whatever the function does beside its private steps: preprocessing, selection, early stopping",
            "the test records: test accuracy is computed on them without noise",
            "settings chosen after looking at the results of other runs on the same records",
        ),
    }
