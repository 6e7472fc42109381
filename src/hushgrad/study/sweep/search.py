"""A search over settings at a fixed ε, by Optuna. Processes that share a storage share the search.

Every trial is a private run of its own on the same records; the result says what the search cost as a whole.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.arguments import positive_number, whole_number
from hushgrad.errors import HushgradError, InvalidArgumentError
from hushgrad.extras import needs_extra
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.run import run
from hushgrad.study.summary_file import read_summary
from hushgrad.study.sweep.choosing import all_together, drawn_number

STUDY = "hushgrad"
TEN = 10.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """The space to search: two settings between bounds (logarithmic), and a list of batch sizes."""

    learning_rate: tuple[float, float]
    max_grad_norm: tuple[float, float]
    batch_sizes: tuple[int, ...]

    def __post_init__(self) -> None:
        for name, (low, high) in (("learning_rate", self.learning_rate), ("max_grad_norm", self.max_grad_norm)):
            if not positive_number(name, low) <= positive_number(name, high):
                raise InvalidArgumentError(
                    f"bounds must be LOW <= HIGH, got {low} and {high}", where=name, cure="Give the smaller bound first"
                )
        if not self.batch_sizes:
            raise InvalidArgumentError("must name at least one size", where="batch_sizes", cure="Give a batch size")

    @classmethod
    def around(cls, config: RunConfig) -> Space:
        """Return a space around settings: ten times less to ten times more, half to four times the batch."""
        clip = config.privacy.max_grad_norm if config.privacy else 1.0
        rate, size = config.learning_rate, config.batch_size
        return cls(
            learning_rate=(rate / TEN, rate * TEN),
            max_grad_norm=(clip / TEN, clip * TEN),
            batch_sizes=(max(1, size // 2), size, 2 * size, 4 * size),
        )


@dataclass(frozen=True, slots=True)
class Found:
    """The best trial: its number, settings, accuracy and ε, how many trials there are, and what they cost together.

    `together` is ε of all trials' ledgers; `drawn_number` what choosing the best would cost had the number of trials
    been drawn at random beforehand.
    """

    number: int
    settings: dict[str, Any]
    test_accuracy: float
    epsilon: float
    trials: int
    failed: int
    together: float
    drawn_number: float


def search(
    config: RunConfig,
    out: Path,
    *,
    trials: int,
    storage: str | None = None,
    space: Space | None = None,
    on_trial: Callable[[int, float], None] = lambda number, accuracy: None,
) -> Found:
    """Search around `config`, whose privacy must be a target ε, until the storage holds `trials` completed trials.

    `out` gets one folder per trial. `storage` is an Optuna URL such as "sqlite:///search.db"; None keeps a journal in
    `out`. Any number of processes, on any machines that see the storage, may call this at the same time; they may end
    with a few trials more. A trial that fails is counted and the search goes on. Raises InvalidArgumentError where
    Optuna is missing or no trial was completed.
    """
    if config.privacy is None or config.privacy.target_epsilon is None:
        raise InvalidArgumentError(
            "a search compares settings at the same privacy, so it needs one",
            where="target_epsilon",
            cure="Set target_epsilon",
        )
    whole_number("trials", trials, minimum=1)
    optuna = _optuna()
    chosen = space or Space.around(config)
    out.mkdir(mode=0o700, parents=True, exist_ok=True)
    study = optuna.create_study(
        study_name=STUDY, storage=_storage(optuna, out, storage), direction="maximize", load_if_exists=True
    )
    privacy = config.privacy

    def objective(trial: Any) -> float:
        settings = replace(
            config,
            learning_rate=trial.suggest_float("learning_rate", *chosen.learning_rate, log=True),
            batch_size=trial.suggest_categorical("batch_size", list(chosen.batch_sizes)),
            privacy=_clipped(privacy, trial.suggest_float("max_grad_norm", *chosen.max_grad_norm, log=True)),
        )
        finished = run(settings, _folder(out, trial.number))
        if finished.outcome.status != "completed":
            study.stop()
            raise optuna.TrialPruned
        accuracy = float(finished.summary["test_accuracy"])
        trial.set_user_attr("epsilon", finished.summary["epsilon"])
        on_trial(trial.number, accuracy)
        return accuracy

    done = optuna.trial.TrialState.COMPLETE
    if sum(trial.state == done for trial in study.trials) < trials:
        limit = optuna.study.MaxTrialsCallback(trials, states=(done,))
        study.optimize(objective, callbacks=[limit], catch=(HushgradError, RuntimeError), n_trials=4 * trials)
    return _found(study, out, done, privacy)


def _found(study: Any, out: Path, done: Any, privacy: Privacy) -> Found:
    completed = [trial for trial in study.trials if trial.state == done]
    if not completed:
        raise InvalidArgumentError(
            "no trial was completed", where="the search", cure="Read the logs in the folders of the trials"
        )
    best = study.best_trial
    together = all_together(
        (read_ledger(ledger).events for ledger in sorted(out.glob("trial-*/ledger.jsonl"))), privacy.delta
    )
    summary = read_summary(_folder(out, best.number))
    if summary is None:
        raise InvalidArgumentError(
            "the folder of the best trial is not on this machine",
            where="the search",
            cure="Look for it on the machine that ran the trial",
        )
    chosen = read_ledger(_folder(out, best.number) / "ledger.jsonl").events
    return Found(
        number=best.number,
        settings=dict(best.params),
        test_accuracy=float(best.value),
        epsilon=float(summary["epsilon"]),
        trials=len(completed),
        failed=len(study.trials) - len(completed),
        together=together,
        drawn_number=drawn_number(chosen, privacy.delta, len(completed)),
    )


def _clipped(privacy: Privacy, max_grad_norm: float) -> Privacy:
    return replace(privacy, max_grad_norm=max_grad_norm)


def _folder(out: Path, number: int) -> Path:
    return out / f"trial-{number:04d}"


def _storage(optuna: Any, out: Path, url: str | None) -> Any:
    """Return Optuna's storage at `url`, or a journal in `out` that several processes may write to."""
    if url is not None:
        return url
    backend = optuna.storages.journal.JournalFileBackend(str(out / "search.journal"))
    return optuna.storages.JournalStorage(backend)


def _optuna() -> Any:
    with needs_extra("sweep", "a search"):
        import optuna
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna
