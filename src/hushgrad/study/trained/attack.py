"""The loss-based attack on a finished run, with the data that it was trained on."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.utils.data import TensorDataset

from hushgrad.checks.auditing.membership import MembershipReport, membership_report
from hushgrad.errors import CheckpointError, InvalidArgumentError
from hushgrad.session.spending import events_at
from hushgrad.study.directory import RunDirectory
from hushgrad.study.resuming import read_config
from hushgrad.study.run import load_for
from hushgrad.study.scoring import EVALUATION_BATCH
from hushgrad.study.trained.loading import load


def attack_run(run: str | os.PathLike[str], *, confidence: float = 0.95) -> MembershipReport:
    """Return how well minus the loss tells a run's training records from its test records.

    Args:
        run: the folder of the run; its data must be where it was.
        confidence: of each interval.

    Raises:
        InvalidArgumentError: no finished run, or one whose data are prepared with noise, which the attack does not do.
        CheckpointError: the data are not those of the run.
    """
    folder = Path(run)
    trained, config = load(folder), read_config(folder)
    task = load_for(config)
    if task.preparation is not None:
        raise InvalidArgumentError(
            "the run's task is prepared from its records with noise, and the attack cannot repeat that",
            where="the run's folder",
            cure="In Python: hushgrad.checks.auditing.membership.membership_report(minus the losses)",
        )
    if task.input_shape != trained.input_shape:
        raise CheckpointError(
            "its data are not those that it was trained on", where="the run's folder", cure="Put them where they were"
        )
    ledger = RunDirectory(folder).ledger
    charged = events_at(ledger) if ledger.exists() else None
    scores = [_minus_losses(trained.model, part) for part in (task.train, task.test)]
    return membership_report(scores[0], scores[1], charged=charged, confidence=confidence)


@torch.no_grad()
def _minus_losses(model: nn.Module, examples: TensorDataset) -> NDArray[np.float64]:
    inputs, labels = examples.tensors
    found = []
    for first in range(0, len(labels), EVALUATION_BATCH):
        chunk = slice(first, first + EVALUATION_BATCH)
        found.append(-nn.functional.cross_entropy(model(inputs[chunk]), labels[chunk], reduction="none").double())
    values: NDArray[np.float64] = torch.cat(found).numpy()
    return values
