"""Losses of a pair of answers, as TRL's `DPOTrainer` names them: each of one pair alone."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Pairs:
    """Pairs of answers, `[B]` each.

    Attributes:
        chosen, rejected: log-probability of the answer under the model, less that under the reference.
        chosen_length, rejected_length: tokens of the answer.
        beta: how strongly the model is held to the reference.
        smoothing: the chance that a label is wrong.
    """

    chosen: Tensor
    rejected: Tensor
    chosen_length: Tensor
    rejected_length: Tensor
    beta: float
    smoothing: float

    @property
    def margin(self) -> Tensor:
        """β times how much more the chosen answer gained."""
        return self.beta * (self.chosen - self.rejected)

    @property
    def mean_margin(self) -> Tensor:
        """The gains of a token, on average, chosen less rejected."""
        return self.chosen / self.chosen_length.clamp(min=1) - self.rejected / self.rejected_length.clamp(min=1)


def _exo(pairs: Pairs) -> Tensor:
    right, wrong = pairs.margin, -pairs.margin
    return torch.sigmoid(right) * (F.logsigmoid(right) - math.log1p(-pairs.smoothing)) + torch.sigmoid(wrong) * (
        F.logsigmoid(wrong) - math.log(pairs.smoothing)
    )


def _nca(pairs: Pairs) -> Tensor:
    chosen, rejected = pairs.beta * pairs.chosen, pairs.beta * pairs.rejected
    return -F.logsigmoid(chosen) - 0.5 * F.logsigmoid(-chosen) - 0.5 * F.logsigmoid(-rejected)


def _robust(pairs: Pairs) -> Tensor:
    clean, flipped = -F.logsigmoid(pairs.margin), -F.logsigmoid(-pairs.margin)
    return ((1 - pairs.smoothing) * clean - pairs.smoothing * flipped) / (1 - 2 * pairs.smoothing)


LOSSES: dict[str, Callable[[Pairs], Tensor]] = {
    "sigmoid": lambda pairs: -F.logsigmoid(pairs.margin),
    "hinge": lambda pairs: torch.relu(1 - pairs.margin),
    "ipo": lambda pairs: (pairs.mean_margin - 1 / (2 * pairs.beta)) ** 2,
    "exo_pair": _exo,
    "nca_pair": _nca,
    "robust": _robust,
    "bco_pair": lambda pairs: -F.logsigmoid(pairs.beta * pairs.chosen) - F.logsigmoid(-pairs.beta * pairs.rejected),
    "sppo_hard": lambda pairs: (pairs.chosen - 0.5 / pairs.beta) ** 2 + (pairs.rejected + 0.5 / pairs.beta) ** 2,
    "apo_zero": lambda pairs: 1 - torch.sigmoid(pairs.beta * pairs.chosen) + torch.sigmoid(pairs.beta * pairs.rejected),
    "apo_down": lambda pairs: torch.sigmoid(pairs.beta * pairs.chosen) + 1 - torch.sigmoid(pairs.margin),
    "sigmoid_norm": lambda pairs: -F.logsigmoid(pairs.beta * pairs.mean_margin),
}
"""By TRL's names: pairs to one loss each, `[B]`."""
