"""Which parts of a model's output a loss counted, and with which weight: told from the gradient that came back.

Where a row with logits z and target y enters a cross entropy with weight c, its gradient is c·(softmax(z) − onehot(y));
a value o with target y gives 2c·(o − y) in a squared error, c or −c in an absolute one, c·(sigmoid(o) − y) in a binary
cross entropy. What was not counted (an ignored target, a mask) has a gradient of exactly 0.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

SPREAD = 2e-3
"""Weights that differ by less than this, relative to the largest, are the same."""

MOST_SAMPLED = 64
"""How many rows weights are measured of."""

LIKELY = (1e-30, 0.999)
"""A probability in between has a gradient that is not 0, if its row was counted."""

SURE_CLASSES = 100
"""So many probabilities never all vanish in one row; without the logits, rows of fewer classes are not judged."""


class Counted(NamedTuple):
    """How many parts the examples have that were counted: the least and most of one example, and of all together.

    `weight`: the one weight that all of them have, None where they differ or it cannot be told.
    """

    least: int
    most: int
    total: int
    weight: float | None


def counted_values(
    kind: str, gradient: Tensor, values: Tensor | None, loss: float, axis: int, size: int
) -> Counted | None:
    """Return what the gradient of one output says of the values that an elementwise loss counted.

    Args:
        kind: "square", "absolute" or "bernoulli".
        gradient: of the output, with the batch on `axis`.
        values: the output's values, or None where they are gone.
        loss: the value of the loss, which must be made of this output and nothing else.
        axis, size: of the batch.
    """
    front = gradient.detach().movedim(axis, 0)
    if front.shape[0] % size:
        return None
    counts = front.reshape(size, -1).count_nonzero(1).tolist()
    return Counted(min(counts), max(counts), sum(counts), _weight_of_values(kind, gradient, values, loss))


def _weight_of_values(kind: str, gradient: Tensor, values: Tensor | None, loss: float) -> float | None:
    """Return c. For a squared error it is Σg² / 4L, whatever the targets are, if all values have the same."""
    found = gradient.detach().double()
    if kind == "square":
        return float(found.square().sum()) / (4 * loss) if 0 < loss < math.inf else None
    if kind == "bernoulli":
        if values is None:
            return None
        chances = values.detach().double().sigmoid()
        found = torch.where(found > 0, found / chances, found / (1 - chances))
    weights = found.abs()[gradient != 0]
    if not weights.numel():
        return None
    low, high = float(weights.min()), float(weights.max())
    return high if high - low < SPREAD * high else None


class CountedRows:
    """The rows of one output of the model, in one backward.

    Args:
        gradient: of the output, `[B·m, ...]` with the batch on `axis`.
        logits: the output's values, or None where they are gone.
        axis: of the batch.
        size: B.
        classes: how many classes there are; one of the other axes has this length.
    """

    def __init__(self, gradient: Tensor, logits: Tensor | None, axis: int, size: int, classes: int) -> None:
        self._size = size
        front = gradient.detach().movedim(axis, 0)
        places = [place for place in range(1, front.ndim) if front.shape[place] == classes]
        self.is_known = len(places) == 1 and front.shape[0] % size == 0
        """Whether the axis of the classes could be told."""
        if self.is_known:
            self._gradient = front.movedim(places[0], -1)
            self._logits = None if logits is None else logits.detach().movedim(axis, 0).movedim(places[0], -1)
            first = self._gradient[..., 0]
            self._rows = first.numel()
            is_whole = int(first.count_nonzero()) == self._rows  # all were counted: nearly always, and quickly seen
            self._counted = None if is_whole else self._find_counted()

    def _find_counted(self) -> Tensor:
        """Return which rows were counted, `[B·m, ...]`; rows that cannot be judged are taken for counted."""
        counted = (self._gradient[..., 0] != 0) | (self._gradient[..., -1] != 0)
        if self._logits is None:
            return counted if self._gradient.shape[-1] >= SURE_CLASSES else torch.ones_like(counted)
        chances = self._logits[~counted].double().softmax(-1)[..., [0, -1]]
        counted[~counted] = ~((chances > LIKELY[0]) & (chances < LIKELY[1])).any(-1)
        return counted

    def found(self, *, with_weight: bool, smoothed: bool) -> Counted:
        """Return what was counted; the weight only where it is asked for, because that takes longer.

        `smoothed`: whether the targets may be spread over the classes, as label smoothing does.
        """
        weights = self._weights(smoothed=smoothed) if with_weight else None
        weight = None
        if weights is not None and float(weights.min()) > 0:
            low, high = float(weights.min()), float(weights.max())
            weight = float(weights.median()) if high - low < SPREAD * high else None
        if self._counted is None:
            each = self._rows // self._size
            return Counted(each, each, self._rows, weight)
        counts = self._counted.reshape(self._size, -1).sum(1).tolist()
        return Counted(min(counts), max(counts), sum(counts), weight)

    def _weights(self, *, smoothed: bool) -> Tensor | None:
        """Return the weights of some counted rows, None where the logits are gone or too few classes show them."""
        if self._logits is None or (smoothed and self._gradient.shape[-1] < 3):
            return None
        counted = torch.ones_like(self._gradient[..., 0], dtype=torch.bool) if self._counted is None else self._counted
        rows = counted.nonzero()
        if not len(rows):
            return None
        chosen = rows[:: -(-len(rows) // MOST_SAMPLED)].unbind(1)
        gradients, chances = self._gradient[chosen].double(), self._logits[chosen].double().softmax(-1)
        others = torch.ones_like(gradients, dtype=torch.bool).scatter_(-1, gradients.argmin(-1, keepdim=True), False)
        gradients, chances = (values[others].reshape(len(values), -1) for values in (gradients, chances))
        if not smoothed:
            enough = chances.sum(-1) > 1e-3
            return (gradients.sum(-1) / chances.sum(-1))[enough] if bool(enough.any()) else None
        gradients, spread = (values - values.mean(-1, keepdim=True) for values in (gradients, chances))
        enough = spread.square().mean(-1).sqrt() > 1e-2 * chances.mean(-1)
        found = (gradients * spread).sum(-1) / spread.square().sum(-1)
        return found[enough] if bool(enough.any()) else None
