"""One training run: the ordinary PyTorch loop, made private by `PrivacyEngine` or left as it is.

Both kinds of run go through the same few lines, so that comparing them compares privacy and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import DatasetError, InvalidArgumentError
from hushgrad.session.spending import steps_taken
from hushgrad.study.augmentation import OverViews, mean_over_views
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.checkpointing import RunCheckpoint
from hushgrad.study.class_weights import check_names
from hushgrad.study.configuration import OPTIMIZERS, Privacy, RunConfig
from hushgrad.study.frozen import with_features_computed_once
from hushgrad.study.loop import EpsilonCache, LoopComponents, run_loop
from hushgrad.study.models import build_model
from hushgrad.study.outcome import Callbacks, RunOutcome
from hushgrad.study.preparation import TRAINING, require_charged
from hushgrad.study.tasks import TASKS, Task


def train(
    config: RunConfig,
    task: Task,
    callbacks: Callbacks,
    *,
    ledger: Path | None = None,
    phase: str | None = None,
    checkpoint: RunCheckpoint | None = None,
) -> tuple[nn.Module, RunOutcome]:
    """Train a model on a task and return it with the outcome; with `average_decay`, the average of its steps.

    A requested stop takes effect at the end of the running step; the outcome is then "interrupted" and exact for the
    steps done. A ledger that holds the preparation of the task is continued: ε covers both; of one that other runs
    share the run is the `phase` of that name, and ε covers all. A private run goes on from its `checkpoint`, if there
    is one already, and writes it after every measurement.

    Raises DatasetError for a batch larger than the training set and InvalidArgumentError for δ ≥ 1/N, or for a task
    that is still to be prepared.
    """
    check_against_data(config, task)
    if task.preparation is not None:
        raise InvalidArgumentError(
            "the task must be prepared before training",
            where="task",
            cure="Call hushgrad.study.preparation.prepare first",
        )
    if config.class_weights is not None and task.class_weights is None:
        raise InvalidArgumentError(
            "the weights of classes must be known before training",
            where="task",
            cure="Call hushgrad.study.preparation.prepare first",
        )
    if config.privacy is not None and task.releases:
        require_charged(ledger, task.releases)
    with _cpu_threads(config.threads):
        return _train(config, task, callbacks, ledger, phase or (TRAINING if task.releases else None), checkpoint)


def model_for(config: RunConfig, task: Task) -> nn.Module:
    """Return the model of a run before its first step. Raises InvalidArgumentError for one that cannot be had."""
    return build_model(
        config.model,
        input_shape=task.input_shape,
        num_classes=task.num_classes,
        seed=config.seed,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        vocabulary_size=task.vocabulary_size,
        base=config.base,
        depth=config.depth,
        width=config.width,
    )


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads for a while (None: as many as before)."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(
    config: RunConfig,
    task: Task,
    callbacks: Callbacks,
    ledger: Path | None,
    phase: str | None,
    checkpoint: RunCheckpoint | None,
) -> tuple[nn.Module, RunOutcome]:
    model = model_for(config, task).to(config.device)
    model, task, whole = with_features_computed_once(model, task, config.device, views=config.augmentations)
    learning = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = OPTIMIZERS[config.optimizer](learning, config.learning_rate, config.momentum)
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        task.train, batch_size=config.batch_size, shuffle=True, generator=torch.Generator().manual_seed(config.seed)
    )
    steps_of_a_pass = len(loader) if config.privacy is None else -(-task.population // config.batch_size)
    planned_steps = config.epochs * steps_of_a_pass
    average = ParameterAverage(model, config.average_decay) if config.average_decay else None
    trained = OverViews(model) if config.augmentations else model
    losses = losses_of(config, task)
    criterion, views = _reduced(losses, config), _views(config)
    parts = LoopComponents(model, trained, optimizer, loader, criterion, views, average, whole)
    if config.privacy is None:
        return parts.released, run_loop(config, task, parts, None, planned_steps, callbacks)
    engine = PrivacyEngine(ledger=ledger)
    parts.batches = _make_private(engine, config, config.privacy, trained, optimizer, loader, task, phase)
    parts.criterion = engine.per_example(losses)
    account = EpsilonCache(engine, config.privacy, engine.session.steps - steps_taken(ledger, phase))
    try:
        start = None
        if checkpoint is not None:
            start = checkpoint.begin(engine, average)
            parts.save = lambda step: checkpoint.save(engine, average, step)
        outcome = run_loop(config, task, parts, account, planned_steps, callbacks, start)
    finally:
        engine.session.close()
    assert outcome.spent is not None  # the loop had an account
    # Closing leaves what the monitors found: the ledger's last record is known only now.
    return parts.released, replace(outcome, spent=replace(outcome.spent, anchor=engine.session.anchor))


def losses_of(config: RunConfig, task: Task) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the criterion that gives each example's loss, [B], times the weight of the example's class.

    Guarantee: the loss of an example follows from that example and from public weights alone.
    """
    weights = None if task.class_weights is None else torch.tensor(task.class_weights, device=config.device)
    if config.augmentations:
        return partial(mean_over_views, class_weights=weights)
    return nn.CrossEntropyLoss(weight=weights, reduction="none")


def _reduced(losses: Callable[[Tensor, Tensor], Tensor], config: RunConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the criterion of ordinary training: the mean or the sum of the examples' losses."""
    reduce = torch.mean if config.loss_reduction == "mean" else torch.sum
    return lambda logits, labels: reduce(losses(logits, labels))


def _views(config: RunConfig) -> Callable[[Tensor], Tensor]:
    """Return what makes [B, K, …] of a batch [B, …], or leaves it as it is where no views are asked for.

    An ordinary run's views follow from its seed. A private run's are secret: see `augmentation`.
    """
    shifts = TASKS[config.task].shifts
    if not config.augmentations or shifts is None:
        return lambda inputs: inputs
    generator = np.random.default_rng(config.seed if config.privacy is None else None)
    return lambda inputs: shifts.views(inputs, config.augmentations, generator)


def check_against_data(config: RunConfig, task: Task) -> None:
    """Raise if the settings cannot hold for the size of the training set."""
    check_names(config.class_weights, task.class_names)
    people = config.privacy is not None and task.people is not None
    count, units = (task.population, "people") if people else (len(task.train), "training examples")
    if config.batch_size > count:
        raise DatasetError(
            f"must be at most the {count} {units}, got {config.batch_size}",
            where="batch_size",
            cure=f"Choose {count} or less",
        )
    if config.privacy is not None and config.privacy.delta >= 1 / count:
        raise InvalidArgumentError(
            f"must be below 1/N = {1 / count:.3g} for {count} {units}, got {config.privacy.delta:g}: "
            f"publishing all of one, chosen at random, would satisfy it",
            where="delta",
            cure="Choose a smaller delta",
        )


def _make_private(
    engine: PrivacyEngine,
    config: RunConfig,
    privacy: Privacy,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    task: Task,
    phase: str | None,
) -> Iterable[tuple[Tensor, ...]]:
    """Make model and optimizer private in place and return the private loader."""
    named: dict[str, Any] = {
        "module": model,
        "optimizer": optimizer,
        "data_loader": loader,
        "max_grad_norm": privacy.max_grad_norm,
        "clipping": privacy.clipping,
        "noise": privacy.noise,
        "sampling": privacy.scheme(config.batch_size, task.population, task.people),
        "loss_reduction": config.loss_reduction,
        "max_physical_batch_size": config.max_physical_batch_size,
        "phase": phase,
    }
    batches: Iterable[tuple[Tensor, ...]]
    if privacy.target_epsilon is not None:
        _, _, batches = engine.make_private_with_epsilon(
            **named,
            target_epsilon=privacy.target_epsilon,
            target_delta=privacy.delta,
            epochs=config.epochs,
            spare_steps=privacy.spare_steps,
        )
    else:
        assert privacy.noise_multiplier is not None  # one of both is given
        _, _, batches = engine.make_private(
            **named,
            noise_multiplier=privacy.noise_multiplier,
            max_epsilon=privacy.max_epsilon,
            max_delta=None if privacy.max_epsilon is None else privacy.delta,
        )
    return batches
