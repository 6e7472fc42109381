"""What can be told of a model without running it; and a model put right for the length of one run.

What would be refused is what the checks of set-up yield (`guards/compatibility.py`), in the mode that a model is in and
in the mode that it would be trained in.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from hushgrad.capture.operators.lookup_options import ALLOWED, TABLES, refused_options
from hushgrad.checks.doctor.findings import Finding
from hushgrad.guards.compatibility import (
    is_unready,
    mixes_examples,
    scripted_parts,
    setup_problems,
    tracks_statistics,
)
from hushgrad.parallel.layout import is_replica_or_shard
from hushgrad.sparse_rows.rule import SparseRows
from hushgrad.torch_internals import BatchNorm, InstanceNorm, buffers_of


def problems_of(model: nn.Module, optimizer: Optimizer | None, sparse_rows: SparseRows | None = None) -> list[Finding]:
    """Return everything that would be refused before any data is read."""
    found = list(map(Finding.of, setup_problems(model, optimizer, sparse_rows)))
    with _in_training_mode(model):
        found += map(Finding.of, setup_problems(model, optimizer, sparse_rows))
    return list(dict.fromkeys(found))


def can_run(model: nn.Module) -> bool:
    """Whether a forward and backward can be tried on the model at all."""
    if not any(parameter.requires_grad for parameter in model.parameters()) or any(scripted_parts(model)):
        return False
    return not is_replica_or_shard(model) and not any(map(is_unready, model.parameters()))


# A model put right ---------------------------------------------------------------------------------------------------


@contextmanager
def _in_training_mode(model: nn.Module) -> Iterator[None]:
    modes = {module: module.training for module in model.modules()}
    try:
        if not model.training:
            model.train()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def put_right(model: nn.Module) -> Iterator[None]:
    """Take what `problems_of` found about the modules out of the way, so that a run can find what is left.

    Everything is as it was afterwards.
    """
    with ExitStack() as stack:
        stack.enter_context(_in_training_mode(model))
        for module in model.modules():
            if isinstance(module, BatchNorm) and mixes_examples(module):
                stack.enter_context(_frozen(module))
            elif isinstance(module, InstanceNorm) and tracks_statistics(module):
                stack.enter_context(_without_statistics(module))
            elif isinstance(module, TABLES):
                for option in list(refused_options(vars(module))):
                    stack.enter_context(_attribute(module, option, ALLOWED[option]))
        yield


@contextmanager
def _frozen(module: BatchNorm) -> Iterator[None]:
    buffers = dict(buffers_of(module))
    if module.running_mean is None:
        reference = next(module.parameters(), torch.empty(0))
        for name, value in (("running_mean", 0.0), ("running_var", 1.0)):
            buffers_of(module)[name] = reference.new_full((module.num_features,), value)
    module.training = False
    try:
        yield
    finally:
        buffers_of(module).clear()
        buffers_of(module).update(buffers)


@contextmanager
def _without_statistics(module: InstanceNorm) -> Iterator[None]:
    buffers = dict(buffers_of(module))
    buffers_of(module).update(dict.fromkeys(buffers))
    module.track_running_stats = False
    try:
        yield
    finally:
        buffers_of(module).update(buffers)
        module.track_running_stats = True


@contextmanager
def _attribute(module: nn.Module, name: str, value: Any) -> Iterator[None]:
    own = vars(module)
    kept, own[name] = own[name], value
    try:
        yield
    finally:
        own[name] = kept
