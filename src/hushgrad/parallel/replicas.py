"""Whether the replicas of a model, and what trains them, are the same in all processes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from hushgrad.torch_sharding import is_distributed

EVERY = 100
"""Replicas are compared as wholes before the first step, and each time so many steps were taken."""

SAMPLE = 4096
"""In every other step so many values of one parameter are, another one each time."""


def digest(tensors: Iterable[Tensor]) -> str:
    """Return a digest of the values of tensors, in their order; equal values on any device have the same one.

    Those that are split over the processes are left out: no two processes have the same part.
    """
    state = hashlib.sha256()
    for value in tensors:
        if is_distributed(value):
            continue
        flat = value.detach().resolve_conj().resolve_neg().contiguous().reshape(-1).view(torch.uint8).cpu()
        state.update(flat.numpy().data)
    return state.hexdigest()


def options_of(optimizer: Optimizer) -> list[dict[str, str]]:
    """Return the options of an optimizer's groups that it was made with: learning rates, momenta and the like."""
    return [
        {name: _text(group[name]) for name in sorted(optimizer.defaults) if name in group}
        for group in optimizer.param_groups
    ]


def _text(value: object) -> str:
    return repr(value.tolist()) if isinstance(value, Tensor) else repr(value)


def state_digest(optimizer: Optimizer) -> str:
    """Return a digest of the tensors in an optimizer's state, in the order of its parameters."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    states = [optimizer.state.get(parameter, {}) for parameter in parameters]
    return digest(state[name] for state in states for name in sorted(state) if isinstance(state[name], Tensor))
