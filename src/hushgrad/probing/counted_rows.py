"""Which rows of a model's outputs a cross entropy counted, and with which weight, told from the gradient that came back.

Where a row with logits z and target y enters a loss with weight c, its gradient is c · (softmax(z) − onehot(y)). A row
whose target was ignored has a gradient of exactly 0.
"""

from __future__ import annotations

import torch
from torch import Tensor

MOST_SAMPLED = 64
"""How many rows weights are measured of."""

LIKELY = (1e-30, 0.999)
"""A probability in between has a gradient that is not 0, if its row was counted."""

SURE_CLASSES = 100
"""So many probabilities never all vanish in one row; without the logits, rows of fewer classes are not judged."""


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
            self._counted = self._find_counted()

    def _find_counted(self) -> Tensor:
        """Return which rows were counted, `[B·m, ...]`; rows that cannot be judged are taken for counted."""
        ends = self._gradient[..., [0, -1]] if self._gradient.shape[-1] > 1 else self._gradient
        counted = (ends != 0).any(-1)
        if bool(counted.all()):
            return counted
        if self._logits is None:
            return counted if self._gradient.shape[-1] >= SURE_CLASSES else torch.ones_like(counted)
        chances = self._logits[~counted].double().softmax(-1)[..., [0, -1]]
        counted[~counted] = ~((chances > LIKELY[0]) & (chances < LIKELY[1])).any(-1)
        return counted

    def counts(self) -> list[int]:
        """Return how many rows of each example were counted."""
        found: list[int] = self._counted.reshape(self._size, -1).sum(1).tolist()
        return found

    def weights(self, *, smoothed: bool) -> Tensor | None:
        """Return the weights of some of the counted rows, None where the logits are gone or too few classes show them.

        `smoothed`: whether the targets may be spread over the classes, as label smoothing does.
        """
        if self._logits is None or (smoothed and self._gradient.shape[-1] < 3):
            return None
        rows = self._counted.nonzero()
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
