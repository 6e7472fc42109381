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
    item = (torch.zeros(B, 2), TARGETS.clone())
    trace = LossTrace(B, item, {})
    try:
        trace.given(((item[0],), {}), ())
        output = OUTPUT.clone().requires_grad_() * 1
        trace.returned(output)
        found = loss(output, item[1])
        trace.loss(found, is_rows=is_rows)
    finally:
        trace.end()
    return trace.program
