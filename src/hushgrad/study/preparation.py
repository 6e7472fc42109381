"""What a task learns from its training data, with noise, before training; charged in the ledger of the run.

Preparation and training are one composition. The preparation is charged first, training is planned on top of what the
ledger then holds, and the ε that is stated covers both.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hushgrad.accounting.calibration import calibrate_noise_multiplier
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.ledger.contract import OBSERVED, OPERATING_SYSTEM, Contract
from hushgrad.accounting.ledger.ledger import Ledger
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import InvalidArgumentError
from hushgrad.randomness import KeyStream
from hushgrad.study.configuration import DEFAULT_DELTA, RunConfig
from hushgrad.study.tasks import Task


@dataclass(frozen=True, eq=False, slots=True)
class Prepared:
    """A task that is ready, and the noise multiplier of its preparation (None if there was nothing to prepare)."""

    task: Task
    noise_multiplier: float | None = None


def prepare(config: RunConfig, task: Task, ledger: Path | None) -> Prepared:
    """Return the task ready to be trained on.

    `ledger` is where the run's steps will be charged. An ordinary run has none: it prepares its task with the same
    noise, uncharged. The noise is chosen so that the preparation alone costs its own ε at the run's δ.

    Guarantee: the preparation is charged in the ledger of training, before anything is learned from the records.

    Raises InvalidArgumentError for a private run without a ledger, and what `Ledger` and the calibration raise.
    """
    preparation = task.preparation
    if preparation is None:
        return Prepared(task)
    privacy = config.privacy
    noise_multiplier = calibrate_noise_multiplier(
        target_epsilon=preparation.epsilon,
        target_delta=privacy.delta if privacy else DEFAULT_DELTA,
        composition=lambda noise: [(Gaussian(noise), 1)],
    )
    if privacy is not None:
        if ledger is None:
            raise InvalidArgumentError(
                "the preparation of a private run is a release, and must be charged",
                where="ledger",
                cure="Pass the ledger of the training",
            )
        # What the session will find when it continues this ledger: anything else in it would be refused.
        contract = Contract(
            OBSERVED,
            OPERATING_SYSTEM,
            expected_batch_size=config.batch_size,
            max_grad_norm=privacy.max_grad_norm,
            loss_reduction=config.loss_reduction,
            population=len(task.train),
            clipping=FlatClipping(privacy.max_grad_norm).describe(),
        )
        with Ledger(ledger, contract=contract) as paid:
            paid.charge(Gaussian(noise_multiplier))
    return Prepared(preparation.apply(noise_multiplier, KeyStream.from_operating_system()), noise_multiplier)
