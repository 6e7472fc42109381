"""What is read of a loss, outside of any training: the output of a model is any tensor that an operator made."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from hushgrad.guards.probing.loss_graph import LossGraph
from hushgrad.guards.probing.loss_values import PerExample, Reading, Term, Total, Unread
from hushgrad.torch_internals import sequence_number

B = 4


def read(loss: Callable[[Tensor], Tensor], *shape: int) -> Reading:
    """Return the reading of the loss of an output of this shape, by default `[B, 3]`."""
    output = torch.rand(shape or (B, 3)).requires_grad_() * 1
    key = (sequence_number(output.grad_fn), output.output_nr)
    return LossGraph(B, {key}, {}, object()).read(loss(output).grad_fn)


def terms(loss: Callable[[Tensor], Tensor], *shape: int) -> tuple[Term, ...]:
    """Return the reductions that a loss is made of; there are no faults."""
    reading = read(loss, *shape)
    assert reading.faults == []
    assert isinstance(reading.value, Total), reading.value
    return reading.value.terms


def rows(values: Callable[[Tensor], Tensor], *shape: int) -> PerExample:
    """Return what values of single examples are taken for; there are no faults."""
    reading = read(values, *shape)
    assert reading.faults == []
    assert isinstance(reading.value, PerExample), reading.value
    return reading.value


def faults(loss: Callable[[Tensor], Tensor], *shape: int) -> list[str]:
    """Return what makes a loss no mean and no sum of one loss for each example."""
    return read(loss, *shape).faults


def is_unread(loss: Callable[[Tensor], Tensor], *shape: int) -> bool:
    """Whether nothing is known of a loss, and nothing held against it."""
    reading = read(loss, *shape)
    return isinstance(reading.value, Unread) and not reading.faults
