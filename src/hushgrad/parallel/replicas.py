"""Whether the replicas of a model, and what trains them, are the same in all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

EVERY = 100
"""Replicas are compared before the first step, and each time so many steps were taken."""


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the values of tensors, in their order; equal values on any device have the same one."""
    state = hashlib.sha256()
    for value in tensors:
        flat = value.detach().contiguous().reshape(-1).view(torch.uint8).cpu()
        state.update(flat.numpy().data)
    return state.hexdigest()


def options_of(optimizer: Optimizer) -> list[dict[str, float]]:
    """Return the numbers among the options of an optimizer's groups: learning rates, momenta and the like."""
    return [
        {
            name: float(value)
            for name, value in group.items()
            if isinstance(value, (int, float)) or (isinstance(value, Tensor) and value.numel() == 1)
        }
        for group in optimizer.param_groups
    ]
