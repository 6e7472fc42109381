"""How often a model is right on private records."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from hushgrad.errors import InvalidArgumentError
from hushgrad.releases.indicator import Indicator
from hushgrad.releases.query import read_by, vector_of


def _model_and_target(record: Any) -> tuple[Any, Any]:
    inputs, target = record
    return inputs, target


@dataclass(frozen=True, eq=False)
class Accuracy(Indicator):
    """The share of all N records whose class a model gives the largest score.

    The model is called with one record at a time, in evaluation mode: what it says of one cannot follow from others.
    The noise on the share has the standard deviation σ/N.

    Attributes:
        model: logits `[1, classes]` of inputs with a first axis of 1.
        of: a function of one record, that returns its inputs (a tensor without the batch axis) and its class; by
            default the record is such a pair.
    """

    model: nn.Module
    of: Callable[[Any], tuple[Any, Any]] = _model_and_target

    def row(self, record: Any) -> Tensor:
        """Return 1 where the model is right, else 0."""
        inputs, target = read_by(self.of, record)
        place = next((p.device for p in self.model.parameters()), torch.device("cpu"))
        scores = self.model(torch.as_tensor(inputs).unsqueeze(0).to(place))
        if not isinstance(scores, Tensor) or scores.dim() != 2 or len(scores) != 1:
            raise InvalidArgumentError(
                "it must return one row of scores for one record",
                where="the model",
                cure="Pass a model that returns logits [B, classes]",
            )
        return (scores.argmax(1).cpu() == vector_of(target, 1)).double()

    def answer(self, noised: Tensor, population: int, noise_std: float) -> float:
        """Return the noised share, cut to [0, 1]."""
        return min(1.0, max(0.0, float(noised) / population))

    def describe(self) -> str:
        """Return what it is."""
        return "the accuracy of a model"

    @property
    def readers(self) -> tuple[Any, ...]:
        """The function, and the model."""
        return (self.of, self.model)

    def while_reading(self) -> AbstractContextManager[None]:
        """Return what puts the model into evaluation mode."""
        return _evaluated(self.model)


@contextmanager
def _evaluated(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
