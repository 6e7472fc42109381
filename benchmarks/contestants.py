"""Who trains it: the ordinary step, hushgrad and its peers, each as a pair of untimed preparation and timed step.

Every contestant gets a model, an optimizer and a batch of its own, takes the same steps on the same fixed records, and
runs the whole of a step: `zero_grad`, forward, backward, clipping, noise, update. What draws and collates a batch is
preparation and is not timed. A further contestant is one more entry of `CONTESTANTS`.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from benchmarks.workloads import Batch, Workload

ORDINARY = "ordinary"
HUSHGRAD = "hushgrad"
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
    """

    title: str
    build: Callable[[Workload, float], Runner]
    package: str = "torch"


def _sgd(model: nn.Module) -> torch.optim.Optimizer:
    return torch.optim.SGD(model.parameters(), lr=LEARNING_RATE)


def _runner(workload: Workload, model: nn.Module, step: Callable[[Batch], None]) -> Runner:
    batch = workload.batch()
    return Runner(lambda: batch, step, tuple(model.parameters()))


def ordinary(workload: Workload, noise_multiplier: float) -> Runner:
    """The step without privacy; there is no noise in it."""
    model = workload.model()
    optimizer, criterion = _sgd(model), workload.criterion()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return _runner(workload, model, step)


def hushgrad_session(workload: Workload, noise_multiplier: float) -> Runner:
    """`privatize` and `session.backward(losses)`, without a loader."""
    model = workload.model()
    optimizer, criterion = _sgd(model), workload.criterion(reduction="none")
    mechanism = hushgrad.DPSGD(
        noise_multiplier=noise_multiplier,
        clipping=hushgrad.FlatClipping(MAX_GRAD_NORM),
        sampling=hushgrad.PoissonSampling(rate=0.01),
        expected_batch_size=workload.batch_size,
    )
    session = hushgrad.privatize(model, optimizer, mechanism)

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        session.backward(criterion(model(batch[0]), batch[1]))
        optimizer.step()

    return _runner(workload, model, step)


def hushgrad_engine(workload: Workload, noise_multiplier: float) -> Runner:
    """`PrivacyEngine` with a plain loop. Sampling at rate 1 makes every draw the same full batch."""
    model = workload.model()
    engine = hushgrad.PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=_sgd(model),
        data_loader=_whole_batch_loader(workload),
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
    )
    criterion = engine.per_example(workload.criterion())

    def prepare() -> Batch:
        inputs, targets = next(iter(loader))
        return inputs, targets

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return Runner(prepare, step, tuple(model.parameters()))


def opacus_hooks(workload: Workload, noise_multiplier: float) -> Runner:
    """Opacus' default: hooks on modules form all per-example gradients."""
    from opacus import GradSampleModule
    from opacus.optimizers import DPOptimizer

    inner = workload.model()
    model = GradSampleModule(inner, batch_first=True, loss_reduction="mean")
    optimizer = DPOptimizer(
        _sgd(model),
        noise_multiplier=noise_multiplier,
        max_grad_norm=MAX_GRAD_NORM,
        expected_batch_size=workload.batch_size,
    )
    criterion = workload.criterion()

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return _runner(workload, inner, step)


def opacus_ghost(workload: Workload, noise_multiplier: float) -> Runner:
    """Opacus' ghost clipping: norms from activations, then a second backward; its engine wraps the loss."""
    from opacus import PrivacyEngine

    inner = workload.model()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about the noise's generator, which is the same as in the other mode
        model, optimizer, criterion, _ = PrivacyEngine().make_private(
            module=inner,
            optimizer=_sgd(inner),
            criterion=workload.criterion(),
            data_loader=_whole_batch_loader(workload),
            noise_multiplier=noise_multiplier,
            max_grad_norm=MAX_GRAD_NORM,
            poisson_sampling=False,
            grad_sample_mode="ghost",
        )

    def step(batch: Batch) -> None:
        optimizer.zero_grad()
        criterion(model(batch[0]), batch[1]).backward()
        optimizer.step()

    return _runner(workload, inner, step)


def _whole_batch_loader(workload: Workload) -> DataLoader[tuple[torch.Tensor, ...]]:
    return DataLoader(TensorDataset(*workload.batch()), batch_size=workload.batch_size)


CONTESTANTS: dict[str, Contestant] = {
    ORDINARY: Contestant("ordinary", ordinary),
    HUSHGRAD: Contestant("hushgrad session", hushgrad_session),
    "hushgrad-engine": Contestant("hushgrad engine", hushgrad_engine),
    "opacus-hooks": Contestant("Opacus hooks", opacus_hooks, package="opacus"),
    "opacus-ghost": Contestant("Opacus ghost", opacus_ghost, package="opacus"),
}
