"""Programs of loops, written down without any training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.guards.probing.loss_program import Program
from hushgrad.guards.probing.loss_trace import LossTrace

B, K = 6, 3
GENERATOR = torch.Generator().manual_seed(5)
OUTPUT = torch.randn(B, K, generator=GENERATOR)
TARGETS = torch.tensor([0, 1, 2, 0, 0, 1])


def program(loss: Callable[[Tensor, Tensor], Any], *, is_rows: bool = False) -> Program:
    """Return the program of a loss of one output `[B, K]` and targets `[B]`, which are the item."""
    return program_of(loss, OUTPUT, TARGETS, is_rows=is_rows)


def program_of(
    loss: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor, *, is_rows: bool = False
) -> Program:
    """Return the program of a loss of these outputs and targets."""
    return trace_of(loss, outputs, targets, is_rows=is_rows).program


def trace_of(
    loss: Callable[[Tensor, Tensor], Any], outputs: Tensor, targets: Tensor, *, is_rows: bool = False
) -> LossTrace:
    """Return what wrote it down."""
    item = (torch.zeros(len(outputs), 2), targets.clone())
    trace = LossTrace(len(outputs), item, {})
    try:
        trace.given(((item[0],), {}), ())
        output = outputs.clone().requires_grad_() * 1
        trace.returned(output)
        found = loss(output, item[1])
        trace.loss(found, is_rows=is_rows)
    finally:
        trace.end()
    return trace
