"""What a task learns from its training data, with noise, before training; charged in the ledger of the run.

Preparation and training are one composition. The preparation is charged first, training is planned on top of what the
ledger then holds, and the ε that is stated covers both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.calibration import calibrate_noise_multiplier, poisson_steps
from hushgrad.accounting.composition import count_steps
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.guarantee import round_up
from hushgrad.accounting.ledger.contract import OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.session.spending import events_at
from hushgrad.study.configuration import DEFAULT_DELTA, RunConfig
from hushgrad.study.tasks import Task
from hushgrad.study.tasks.task import Preparation


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A task that is ready, the noise multiplier of its preparation, and how many releases of it were charged.

    One; a run that was killed between a charge and its release has charged twice. Both None if there was nothing to do,
    and the second where nothing was charged.
    """

    task: Task
    noise_multiplier: float | None = None
    releases: int | None = None


def prepare(config: RunConfig, task: Task, ledger: Path | None, learned: tuple[int, ...] | None = None) -> Prepared:
    """Return the task ready to be trained on.

    `learned` is what a run that goes on has learned and paid for already: nothing is charged then.

    `ledger` is where the run's steps will be charged. An ordinary run has none: it prepares its task with the same
    noise, uncharged. The noise is chosen so that the preparation alone costs its own ε at the run's δ.

    Guarantee: the preparation is charged in the ledger of training, before anything is learned from the records.

    Raises InvalidArgumentError for a private run without a ledger, and what `Ledger` and the calibration raise.
    """
    preparation = task.preparation
    if preparation is None:
        return Prepared(task)
    privacy = config.privacy
    noise_multiplier = _noise_of(preparation, privacy.delta if privacy else DEFAULT_DELTA)
    if learned is not None:
        charged = events_at(ledger)[:1]
        return Prepared(preparation.restore(learned), noise_multiplier, count_steps(charged) if charged else None)
    releases = None
    if privacy is not None:
        if ledger is None:
            raise InvalidArgumentError(
                "the preparation of a private run is a release, and must be charged",
                where="ledger",
                cure="Pass the ledger of the training",
            )
        if privacy.noise != "gaussian":
            raise InvalidArgumentError(
                "the preparation of this task is a release whose noise is not drawn on a grid, and stands in the same "
                "ledger",
                where="noise",
                cure="Leave noise out for this task",
            )
        # What the session will find when it continues this ledger: anything else in it would be refused.
        contract = Contract(
            OBSERVED,
            OPERATING_SYSTEM,
            expected_batch_size=config.batch_size,
            max_grad_norm=privacy.max_grad_norm,
            loss_reduction=config.loss_reduction,
            population=len(task.train),
            clipping=privacy.clip_rule(config.batch_size).describe(),
        )
        with Ledger(ledger, contract=contract) as paid:
            paid.charge(Gaussian(noise_multiplier))
            releases = paid.steps
    ready = preparation.apply(noise_multiplier, KeyStream.from_operating_system())
    return Prepared(ready, noise_multiplier, releases)


def check_budget(config: RunConfig, task: Task) -> None:
    """Raise InvalidArgumentError if the run, preparation and all epochs, would spend more than its `max_epsilon`.

    What a run spends depends on its settings and on public counts alone, so this is known before it starts. The session
    holds the same budget while the run goes on.
    """
    privacy = config.privacy
    if privacy is None or privacy.max_epsilon is None or privacy.noise_multiplier is None:
        return  # a target is checked against the budget where both are given
    count = len(task.train)
    steps = config.epochs * -(-count // config.batch_size) + privacy.spare_steps
    planned = [*poisson_steps(config.batch_size / count, steps)(privacy.noise_multiplier)]
    if task.preparation is not None:
        planned.append((Gaussian(_noise_of(task.preparation, privacy.delta)), 1))
    spent = epsilon(planned, privacy.delta)
    if spent > privacy.max_epsilon:
        raise InvalidArgumentError(
            f"the run would spend ε = {round_up(spent)} at δ = {privacy.delta:g}, beyond max_epsilon = "
            f"{privacy.max_epsilon:g}",
            cure=f"Raise noise_multiplier, lower epochs or spare_steps, or give target_epsilon={privacy.max_epsilon:g} "
            "in place of noise_multiplier to have the noise chosen",
        )


def _noise_of(preparation: Preparation, delta: float) -> float:
    """Return the noise multiplier that keeps a preparation by itself at its ε."""
    return calibrate_noise_multiplier(
        target_epsilon=preparation.epsilon, target_delta=delta, composition=lambda noise: [(Gaussian(noise), 1)]
    )
