"""One training run: the ordinary PyTorch loop, made private by `PrivacyEngine` or left as it is.

Both kinds of run go through the same few lines, so that a comparison between them compares nothing else.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.accounting.calibration import calibrate_noise_multiplier, poisson_steps
from hushgrad.accounting.composition import Composition
from hushgrad.errors import DatasetError, InvalidArgumentError
from hushgrad.sampling.specs import PoissonSampling
from hushgrad.spending import events_at
from hushgrad.study.augmentation import OverViews, mean_over_views
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.configuration import OPTIMIZERS, Privacy, RunConfig
from hushgrad.study.models import build_model
from hushgrad.study.outcome import Measurement, Outcome, Spent, Watchers
from hushgrad.study.tasks import TASKS, Task

EVALUATION_BATCH = 2048
# An accurate epsilon takes up to a second, so it is computed this often at most.
MEASUREMENTS_BETWEEN_TESTS = 20
MOST_TESTS = 100


def train(
    config: RunConfig, task: Task, watchers: Watchers, *, ledger: Path | None = None
) -> tuple[nn.Module, Outcome]:
    """Train a model on a task and return it with the outcome; with `average_decay`, the average of its steps.

    A requested stop takes effect at the end of the running step; the outcome is then "interrupted" and exact for the
    steps done. A ledger that holds the preparation of the task is continued: ε covers both.

    Raises DatasetError for a batch larger than the training set and InvalidArgumentError for δ ≥ 1/N, or for a task
    that is still to be prepared.
    """
    check_against_data(config, task)
    if task.preparation is not None:
        raise InvalidArgumentError("the task must be prepared first; call hushgrad.study.preparation.prepare")
    with _cpu_threads(config.threads):
        return _train(config, task, watchers, ledger)


@contextmanager
def _cpu_threads(count: int | None) -> Iterator[None]:
    """Compute with `count` threads for a while (None: as many as before)."""
    before = torch.get_num_threads()
    torch.set_num_threads(before if count is None else count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _train(config: RunConfig, task: Task, watchers: Watchers, ledger: Path | None) -> tuple[nn.Module, Outcome]:
    model = build_model(
        config.model,
        input_shape=task.input_shape,
        num_classes=task.num_classes,
        seed=config.seed,
        hidden_sizes=config.hidden_sizes,
        activation=config.activation,
        vocabulary_size=task.vocabulary_size,
    ).to(config.device)
    optimizer = OPTIMIZERS[config.optimizer](model.parameters(), config.learning_rate, config.momentum)
    loader: DataLoader[tuple[Tensor, ...]] = DataLoader(
        task.train, batch_size=config.batch_size, shuffle=True, generator=torch.Generator().manual_seed(config.seed)
    )
    planned_steps = config.epochs * len(loader)
    average = ParameterAverage(model, config.average_decay) if config.average_decay is not None else None
    trained = OverViews(model) if config.augmentations else model
    parts = _Parts(model, trained, optimizer, loader, _plain_criterion(config), _views(config), average)
    if config.privacy is None:
        return parts.released, _loop(config, task, parts, None, planned_steps, watchers)
    engine = PrivacyEngine(ledger=ledger)
    parts.batches = _make_private(
        engine, config, config.privacy, trained, optimizer, loader, len(task.train), events_at(ledger)
    )
    parts.criterion = engine.per_example(mean_over_views if config.augmentations else nn.CrossEntropyLoss())
    try:
        outcome = _loop(config, task, parts, _Private(engine, config.privacy), planned_steps, watchers)
    finally:
        engine.session.close()
    return parts.released, outcome


@dataclass(slots=True)
class _Parts:
    """What a loop works with; `trained` is the model in the form that takes batches as `views` leaves them."""

    model: nn.Module
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterable[tuple[Tensor, ...]]
    criterion: Callable[[Tensor, Tensor], Tensor]
    views: Callable[[Tensor], Tensor]
    average: ParameterAverage | None

    @property
    def released(self) -> nn.Module:
        """What is tested and given back."""
        return self.model if self.average is None else self.average.model


def _plain_criterion(config: RunConfig) -> Callable[[Tensor, Tensor], Tensor]:
    """Return the criterion of ordinary training: the mean or the sum of the records' losses."""
    if not config.augmentations:
        return nn.CrossEntropyLoss(reduction=config.loss_reduction)
    reduce = torch.mean if config.loss_reduction == "mean" else torch.sum
    return lambda logits, labels: reduce(mean_over_views(logits, labels))


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
    count = len(task.train)
    if config.batch_size > count:
        raise DatasetError(f"batch_size must be at most the {count} training examples, got {config.batch_size}")
    if config.privacy is not None and config.privacy.delta >= 1 / count:
        raise InvalidArgumentError(
            f"delta must be below 1/N = {1 / count:.3g} for {count} training examples, got {config.privacy.delta:g}: "
            "publishing one whole record at random would satisfy it"
        )


@torch.no_grad()
def right_on(model: nn.Module, examples: TensorDataset, device: str) -> Tensor:
    """Return for each example whether the model classifies it rightly, [N] bool on the CPU."""
    was_training = model.training
    model.eval()
    inputs, labels = examples.tensors
    chunks = [slice(first, first + EVALUATION_BATCH) for first in range(0, len(labels), EVALUATION_BATCH)]
    right = [model(inputs[chunk].to(device)).argmax(1).cpu() == labels[chunk] for chunk in chunks]
    model.train(was_training)
    return torch.cat(right)


def accuracy(model: nn.Module, examples: TensorDataset, device: str) -> float:
    """Return the share of examples that the model classifies rightly."""
    return float(right_on(model, examples, device).double().mean())


def _make_private(
    engine: PrivacyEngine,
    config: RunConfig,
    privacy: Privacy,
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    loader: DataLoader[tuple[Tensor, ...]],
    count: int,
    paid: Composition,
) -> Iterable[tuple[Tensor, ...]]:
    """Make model and optimizer private in place and return the private loader; `paid` is in the ledger already."""
    if privacy.target_epsilon is not None and not paid:
        _, _, batches = engine.make_private_with_epsilon(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            target_epsilon=privacy.target_epsilon,
            target_delta=privacy.delta,
            epochs=config.epochs,
            max_grad_norm=privacy.max_grad_norm,
            loss_reduction=config.loss_reduction,
            max_physical_batch_size=config.max_physical_batch_size,
        )
    else:
        noise_multiplier = privacy.noise_multiplier
        if noise_multiplier is None:
            noise_multiplier = _noise_on_top(config, privacy, paid, count, len(loader))
        _, _, batches = engine.make_private(
            module=model,
            optimizer=optimizer,
            data_loader=loader,
            noise_multiplier=noise_multiplier,
            max_grad_norm=privacy.max_grad_norm,
            loss_reduction=config.loss_reduction,
            max_physical_batch_size=config.max_physical_batch_size,
            target_epsilon=privacy.target_epsilon,
            target_delta=None if privacy.target_epsilon is None else privacy.delta,
        )
    return batches


def _noise_on_top(config: RunConfig, privacy: Privacy, paid: Composition, count: int, steps: int) -> float:
    """Return the noise multiplier at which all epochs, `steps` steps each, and what is paid meet the target ε."""
    assert privacy.target_epsilon is not None  # Privacy checks that this or a noise multiplier is given
    training = poisson_steps(config.batch_size / count, config.epochs * steps)
    return calibrate_noise_multiplier(
        target_epsilon=privacy.target_epsilon,
        target_delta=privacy.delta,
        composition=lambda noise_multiplier: [*paid, *training(noise_multiplier)],
    )


@dataclass(slots=True)
class _Private:
    """The engine of a private run, asked once per step at most: an epsilon takes a while to compute."""

    engine: PrivacyEngine
    privacy: Privacy
    _known: tuple[int, Spent] | None = None

    def spent(self, step: int) -> Spent:
        """Return what the engine states after `step` steps."""
        if self._known is None or self._known[0] != step:
            mechanism = self.engine.mechanism
            self._known = (
                step,
                Spent(
                    guarantee=self.engine.guarantee(self.privacy.delta),
                    noise_multiplier=mechanism.noise_multiplier,
                    max_grad_norm=self.privacy.max_grad_norm,
                    sampling_rate=mechanism.sampling.rate if isinstance(mechanism.sampling, PoissonSampling) else None,
                ),
            )
        return self._known[1]


@dataclass(slots=True)
class _Window:
    """Sums over the batches since the last measurement, kept on the device until they are read."""

    loss: Tensor
    right: Tensor
    examples: int = 0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def on(cls, device: str) -> _Window:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device))

    def add(self, loss_sum: Tensor, logits: Tensor, labels_B: Tensor) -> None:
        """Add a batch: `logits` [B, classes], or [B, K, classes] over views, which are averaged."""
        self.loss += loss_sum.detach()
        logits_BL = logits.detach() if logits.ndim == 2 else logits.detach().mean(1)
        self.right += (logits_BL.argmax(1) == labels_B).sum()
        self.examples += len(labels_B)

    def measurement(
        self, *, step: int, epoch: int, test_accuracy: float | None, epsilon: float | None, began: float, trained: float
    ) -> Measurement:
        count = max(1, self.examples)
        return Measurement(
            step=step,
            epoch=epoch,
            loss=float(self.loss) / count,
            train_accuracy=float(self.right) / count,
            test_accuracy=test_accuracy,
            epsilon=epsilon,
            examples_per_second=self.examples / max(1e-9, trained - self.started),
            seconds=time.perf_counter() - began,
        )


def _loop(
    config: RunConfig,
    task: Task,
    parts: _Parts,
    private: _Private | None,
    planned_steps: int,
    watchers: Watchers,
) -> Outcome:
    """Run the epochs and return the outcome; `private` is None for an ordinary run."""
    began = time.perf_counter()
    measurements: list[Measurement] = []
    measure_every = max(1, planned_steps // MEASUREMENTS_BETWEEN_TESTS)
    test_every = max(1, config.epochs // MOST_TESTS)
    steps_per_epoch = planned_steps // config.epochs
    step = 0
    status = "running"

    def outcome_now() -> Outcome:
        spent = private.spent(step) if private is not None else None
        return Outcome(status, step, planned_steps, time.perf_counter() - began, tuple(measurements), spent)

    def measure(window: _Window, epoch: int, *, with_test: bool) -> None:
        trained = time.perf_counter()
        epsilon = private.spent(step).guarantee.epsilon if private is not None else None
        tested = accuracy(parts.released, task.test, config.device) if with_test else None
        measurement = window.measurement(
            step=step, epoch=epoch, test_accuracy=tested, epsilon=epsilon, began=began, trained=trained
        )
        measurements.append(measurement)
        watchers.on_measurement(measurement)

    watchers.on_start(planned_steps, private.engine.mechanism.noise_multiplier if private is not None else None)
    window = _Window.on(config.device)
    for epoch in range(1, config.epochs + 1):
        tested_at = epoch * steps_per_epoch if epoch % test_every == 0 or epoch == config.epochs else None
        for inputs, labels in parts.batches:
            inputs, labels = parts.views(inputs.to(config.device)), labels.to(config.device)
            parts.optimizer.zero_grad()
            logits = parts.trained(inputs)
            loss = parts.criterion(logits, labels)
            loss.backward()  # type: ignore[no-untyped-call]
            parts.optimizer.step()
            window.add(loss * len(labels) if config.loss_reduction == "mean" else loss, logits, labels)
            if private is not None and not private.engine.last_step_updated:
                continue
            step += 1
            if parts.average is not None:
                parts.average.update(parts.model)
            watchers.on_step(step)
            if step < planned_steps and watchers.stop_requested():
                status = "interrupted"
                break
            if step % measure_every == 0 and step != tested_at:
                measure(window, epoch, with_test=False)
                window = _Window.on(config.device)
        if tested_at is None and status == "running":
            continue
        measure(window, epoch, with_test=True)
        if step == planned_steps:
            status = "completed"
        watchers.on_epoch(parts.released, outcome_now())
        if status != "running":
            break
        window = _Window.on(config.device)
    return outcome_now()
