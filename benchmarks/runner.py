"""What a contestant is: a pair of untimed preparation and timed step.

Every contestant gets a model, an optimizer and a batch of its own, takes the same steps on the same fixed records, and
runs the whole of a step: `zero_grad`, forward, backward, clipping, noise, update. What draws and collates a batch is
preparation and is not timed. What takes part is in `contestants`.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from benchmarks.workloads import Batch, Workload

LEARNING_RATE = 0.01
MAX_GRAD_NORM = 1.0


@dataclass(frozen=True)
class Runner:
    """A contestant ready to step.

    Attributes:
        prepare: returns the batch of the next step; not timed.
        step: one whole step on that batch; timed.
        parameters: the trainable parameters as tensors, in the order of the model.
    """

    prepare: Callable[[], Batch]
    step: Callable[[Batch], None]
    parameters: tuple[torch.Tensor, ...]


@dataclass(frozen=True)
class Contestant:
    """A way to train.

    Attributes:
        title: how reports call it.
        build: (workload, noise multiplier) to a runner.
        package: the installed package that it measures; its version is part of the results.
        version: (package) to its version; one that is used from a folder and not installed says its own.
        missing: why it cannot run on this machine, or None.
        has_peak: whether its peak memory is measured; what a compiler takes on the way is not a step's.
    """

    title: str
    build: Callable[[Workload, float], Runner]
    package: str = "torch"
    version: Callable[[str], str] = importlib.metadata.version
    missing: Callable[[], str | None] = lambda: None
    has_peak: bool = True


def trainable(model: nn.Module) -> tuple[nn.Parameter, ...]:
    """Return the parameters that are trained."""
    return tuple(parameter for parameter in model.parameters() if parameter.requires_grad)


def sgd(model: nn.Module) -> torch.optim.Optimizer:
    """Return the optimizer that every contestant has."""
    return torch.optim.SGD(trainable(model), lr=LEARNING_RATE)


def runner_of(workload: Workload, model: nn.Module, step: Callable[[Batch], None]) -> Runner:
    """Return a runner that steps on the workload's one batch."""
    batch = workload.batch()
    return Runner(lambda: batch, step, trainable(model))


def whole_batch_loader(workload: Workload) -> DataLoader[tuple[torch.Tensor, ...]]:
    """Return a loader whose every pass is the workload's one batch."""
    return DataLoader(TensorDataset(*workload.batch()), batch_size=workload.batch_size)


def not_installed(package: str) -> str | None:
    """Return that a package is missing, with the cure, or None if it is there."""
    if importlib.util.find_spec(package) is None:
        return f"{package} is not installed: pip install 'hushgrad[dev]'"
    return None
