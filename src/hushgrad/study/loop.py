"""The training loop, the same for private and for ordinary runs, and what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from hushgrad import PrivacyEngine
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.outcome import Callbacks, Measurement, PrivacySpent, RunOutcome
from hushgrad.study.scoring import accuracy
from hushgrad.study.tasks import Task

# An accurate epsilon takes up to a second, so it is computed this often at most.
MEASUREMENTS_BETWEEN_TESTS = 20
MOST_TESTS = 100


@dataclass(slots=True)
class LoopComponents:
    """The components of a loop; `trained` is the model in the form that takes what `views` makes of a batch."""

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


@dataclass(slots=True)
class EpsilonCache:
    """The ε of a private run, computed at most once per step, because computing it takes a while."""

    engine: PrivacyEngine
    privacy: Privacy
    _known: tuple[int, PrivacySpent] | None = None

    def spent(self, step: int) -> PrivacySpent:
        """Return what the engine states after `step` steps."""
        if self._known is None or self._known[0] != step:
            mechanism = self.engine.mechanism
            self._known = (
                step,
                PrivacySpent(
                    guarantee=self.engine.guarantee(self.privacy.delta),
                    noise_multiplier=mechanism.noise_multiplier,
                    max_grad_norm=self.privacy.max_grad_norm,
                    sampling_rate=mechanism.sampling.poisson_rate,
                    anchor=self.engine.session.anchor,
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


def run_loop(
    config: RunConfig,
    task: Task,
    parts: LoopComponents,
    account: EpsilonCache | None,
    planned_steps: int,
    callbacks: Callbacks,
) -> RunOutcome:
    """Run the epochs and return the outcome; `account` is None for an ordinary run."""
    began = time.perf_counter()
    measurements: list[Measurement] = []
    measure_every = max(1, planned_steps // MEASUREMENTS_BETWEEN_TESTS)
    test_every = max(1, config.epochs // MOST_TESTS)
    steps_per_epoch = planned_steps // config.epochs
    step = 0
    status = "running"

    def outcome_now() -> RunOutcome:
        spent = account.spent(step) if account is not None else None
        return RunOutcome(status, step, planned_steps, time.perf_counter() - began, tuple(measurements), spent)

    def measure(window: _Window, epoch: int, *, with_test: bool) -> None:
        trained = time.perf_counter()
        epsilon = account.spent(step).guarantee.epsilon if account is not None else None
        tested = accuracy(parts.released, task.test, config.device) if with_test else None
        measurement = window.measurement(
            step=step, epoch=epoch, test_accuracy=tested, epsilon=epsilon, began=began, trained=trained
        )
        measurements.append(measurement)
        callbacks.on_measurement(measurement)

    callbacks.on_start(planned_steps, account.engine.mechanism.noise_multiplier if account is not None else None)
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
            if account is not None and not account.engine.last_step_updated:
                continue
            step += 1
            if parts.average is not None:
                parts.average.update(parts.model)
            callbacks.on_step(step)
            if step < planned_steps and callbacks.stop_requested():
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
        callbacks.on_epoch(parts.released, outcome_now())
        if status != "running":
            break
        window = _Window.on(config.device)
    return outcome_now()
