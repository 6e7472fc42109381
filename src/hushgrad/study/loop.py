"""The training loop, the same for private and for ordinary runs, and what it measures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor, nn

from hushgrad import PrivacyEngine
from hushgrad.errors import BudgetExhaustedError
from hushgrad.study.averaging import ParameterAverage
from hushgrad.study.configuration import Privacy, RunConfig
from hushgrad.study.outcome import Callbacks, Measurement, PrivacySpent, RunOutcome
from hushgrad.study.scoring import Scores, score
from hushgrad.study.tasks import Task

# An accurate epsilon takes up to a second, so it is computed this often at most.
MEASUREMENTS_BETWEEN_TESTS = 20
MOST_TESTS = 100


@dataclass(slots=True)
class LoopComponents:
    """The components of a loop; `trained` is the model in the form that takes what `views` makes of a batch.

    `whole` makes of `model`, or of its average, what is given back. `save` writes a checkpoint after so many steps.
    """

    model: nn.Module
    trained: nn.Module
    optimizer: torch.optim.Optimizer
    batches: Iterable[tuple[Tensor, ...]]
    criterion: Callable[[Tensor, Tensor], Tensor]
    views: Callable[[Tensor], Tensor]
    average: ParameterAverage | None
    whole: Callable[[nn.Module], nn.Module] = lambda trained: trained
    save: Callable[[int], None] = lambda step: None

    @property
    def tested(self) -> nn.Module:
        """What is tested, on inputs as `trained` takes them."""
        return self.model if self.average is None else self.average.model

    @property
    def released(self) -> nn.Module:
        """What is given back."""
        return self.whole(self.tested)


@dataclass(slots=True)
class EpsilonCache:
    """The ε of a private run, computed at most once per step, because computing it takes a while.

    `before` is how many steps of other runs its ledger held when it began.
    """

    engine: PrivacyEngine
    privacy: Privacy
    before: int = 0
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
                    expected_batch_size=mechanism.expected_batch_size,
                    anchor=self.engine.session.anchor,
                    lost_steps=self.engine.session.steps - self.before - step,
                ),
            )
        return self._known[1]

    def end(self, step: int, planned_steps: int) -> int:
        """Return the step at which a run ends that goes on from `step`: the planned one, if it is paid for."""
        left = self.engine.session.steps_left
        return planned_steps if left is None else min(planned_steps, step + left)

    @property
    def has_whole_passes(self) -> bool:
        """Whether what is charged is broken off with a pass, so that a run that goes on begins with a whole one."""
        return self.engine.mechanism.sampling.counts_in != "steps"


@dataclass(slots=True)
class _Window:
    """Sums over the batches since the last measurement, kept on the device until they are read."""

    loss: Tensor
    right: Tensor
    of_class: Tensor
    examples: int = 0
    started: float = field(default_factory=time.perf_counter)

    @classmethod
    def on(cls, device: str, classes: int) -> _Window:
        return cls(torch.zeros((), device=device), torch.zeros((), device=device), torch.zeros(classes, device=device))

    def add(self, loss_sum: Tensor, logits: Tensor, labels_B: Tensor) -> None:
        """Add a batch: `logits` [B, classes], or [B, K, classes] over views, which are averaged."""
        self.loss += loss_sum.detach()
        logits_BL = logits.detach() if logits.ndim == 2 else logits.detach().mean(1)
        self.right += (logits_BL.argmax(1) == labels_B).sum()
        self.of_class.index_add_(0, labels_B, torch.ones_like(labels_B, dtype=self.of_class.dtype))
        self.examples += len(labels_B)

    def measurement(
        self,
        *,
        step: int,
        epoch: int,
        test_scores: Scores | None,
        spent: PrivacySpent | None,
        seconds: float,
        trained: float,
    ) -> Measurement:
        count = max(1, self.examples)
        return Measurement(
            step=step,
            epoch=epoch,
            loss=float(self.loss) / count,
            train_accuracy=float(self.right) / count,
            test_accuracy=test_scores.accuracy if test_scores is not None else None,
            epsilon=spent.guarantee.epsilon if spent is not None else None,
            examples_per_second=self.examples / max(1e-9, trained - self.started),
            seconds=seconds,
            lost_steps=spent.lost_steps if spent is not None else 0,
            train_largest_class=float(self.of_class.max()) / count,
            test_scores=test_scores,
        )


def run_loop(
    config: RunConfig,
    task: Task,
    parts: LoopComponents,
    account: EpsilonCache | None,
    planned_steps: int,
    callbacks: Callbacks,
    start: int | None = None,
) -> RunOutcome:
    """Run the epochs and return the outcome; `account` is None for an ordinary run.

    `start` is how many steps the weights have seen where a run goes on that was stopped; None for one that begins. A
    checkpoint is written after every measurement, so what was measured by `start` is all there.
    """
    began = time.perf_counter()
    measure_every = max(1, planned_steps // MEASUREMENTS_BETWEEN_TESTS)
    test_every = max(1, config.epochs // MOST_TESTS)
    steps_per_epoch = planned_steps // config.epochs
    step = start or 0
    last = planned_steps if account is None else account.end(step, planned_steps)
    shift = step % steps_per_epoch if account is not None and account.has_whole_passes else 0
    if last == 0:
        raise BudgetExhaustedError(
            "all steps that were planned are spent, and crashes have taken every one of them away",
            cure="Begin a new run: the checkpoint holds the weights that it began with",
        )
    measurements = [] if start is None else list(callbacks.on_resume(start))
    before = measurements[-1].seconds if measurements else 0.0
    status = "running"

    def seconds() -> float:
        return before + time.perf_counter() - began

    def outcome_now() -> RunOutcome:
        spent = account.spent(step) if account is not None else None
        return RunOutcome(status, step, planned_steps, seconds(), tuple(measurements), spent)

    def tested() -> Scores:
        return score(parts.tested, task.test, config.device)

    def keep(measurement: Measurement) -> None:
        measurements.append(measurement)
        callbacks.on_measurement(measurement)
        parts.save(step)

    def measure(window: _Window, epoch: int, *, with_test: bool) -> None:
        trained = time.perf_counter()
        spent = account.spent(step) if account is not None else None
        scores = tested() if with_test else None
        keep(
            window.measurement(
                step=step, epoch=epoch, test_scores=scores, spent=spent, seconds=seconds(), trained=trained
            )
        )

    callbacks.on_start(planned_steps, account.engine.mechanism.noise_multiplier if account is not None else None)
    if step == last:  # it was stopped between its last step and its end, or has none left
        if measurements and measurements[-1].test_accuracy is None:
            unfinished = measurements[-1]
            measurements = list(callbacks.on_resume(step - 1))
            spent, scores = account.spent(step) if account is not None else None, tested()
            keep(
                replace(
                    unfinished,
                    test_accuracy=scores.accuracy,
                    test_scores=scores,
                    epsilon=spent.guarantee.epsilon if spent is not None else None,
                    lost_steps=spent.lost_steps if spent is not None else 0,
                )
            )
        status = "completed"
        callbacks.on_epoch(parts.released, outcome_now())
    window = _Window.on(config.device, task.num_classes)
    while status == "running":
        epoch = (step - shift) // steps_per_epoch + 1
        end = min(epoch * steps_per_epoch + shift, last)
        is_tested = epoch % test_every == 0 or end == last
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
            if step < last and callbacks.stop_requested():
                status = "interrupted"
                break
            if step % measure_every == 0 and not (is_tested and step == end):
                measure(window, epoch, with_test=False)
                window = _Window.on(config.device, task.num_classes)
            if step == end:  # of an epoch that was begun before the checkpoint, the rest
                break
        if not is_tested and status == "running":
            continue
        measure(window, epoch, with_test=True)
        if step == last:
            status = "completed"
        callbacks.on_epoch(parts.released, outcome_now())
        window = _Window.on(config.device, task.num_classes)
    return outcome_now()
