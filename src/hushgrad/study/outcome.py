"""What a run reports: its measurements and its outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from torch import nn

from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.study.scoring import Scores


@dataclass(frozen=True, slots=True)
class Measurement:
    """Where a run stands after a step.

    `loss` and `train_accuracy` are means over the batches since the last measurement. They are computed on training
    examples without noise, so epsilon does not cover them. `test_accuracy` is None between the ends of epochs, and
    `epsilon` is None for an ordinary run. Accuracies are fractions; `examples_per_second` counts training examples.
    `lost_steps` were charged beside `step` and taken away by a crash: ε is that of both. `train_largest_class` is the
    share of the largest class of the examples that `train_accuracy` is of, and `test_accuracy` follows from
    `test_scores`. Both are None in files of versions that did not keep them.
    """

    step: int
    epoch: int
    loss: float
    train_accuracy: float
    test_accuracy: float | None
    epsilon: float | None
    examples_per_second: float
    seconds: float
    lost_steps: int = 0
    train_largest_class: float | None = None
    test_scores: Scores | None = None


@dataclass(frozen=True, slots=True)
class PrivacySpent:
    """The privacy that a run has spent so far, as the engine states it.

    `sampling_rate` is None unless examples were drawn by Poisson sampling; `expected_batch_size` is what the sum is
    divided by, which differs from the batch size where a pass is shared out over its steps. `anchor` is the ledger's
    last record.
    `lost_steps` of the steps charged came after a checkpoint that a crash made the run go back to.
    """

    guarantee: Guarantee
    noise_multiplier: float
    max_grad_norm: float
    sampling_rate: float | None
    expected_batch_size: float
    anchor: LedgerHead | None = None
    lost_steps: int = 0


@dataclass(frozen=True, slots=True)
class RunOutcome:
    """The outcome of a run, so far or final.

    `status` is "running", "completed" (nothing more is to come) or "interrupted"; `spent` is None for an ordinary run.
    A run that lost more steps than its plan had to spare is completed with fewer than `planned_steps`.
    """

    status: str
    steps: int
    planned_steps: int
    seconds: float
    measurements: tuple[Measurement, ...]
    spent: PrivacySpent | None

    @property
    def private(self) -> bool:
        """Does any finite epsilon hold for this run?"""
        return self.spent is not None and self.spent.guarantee.private

    @property
    def lost_steps(self) -> int:
        """How many steps were charged and taken away by crashes."""
        return self.spent.lost_steps if self.spent else 0

    @property
    def last_tested(self) -> Measurement | None:
        """The last measurement with a test; None before the first epoch's end."""
        return next((m for m in reversed(self.measurements) if m.test_accuracy is not None), None)

    @property
    def test_accuracy(self) -> float | None:
        """The last measured test accuracy, a fraction; None before the first epoch's end."""
        return self.last_tested.test_accuracy if self.last_tested is not None else None

    @property
    def test_scores(self) -> Scores | None:
        """What that accuracy follows from."""
        return self.last_tested.test_scores if self.last_tested is not None else None


@dataclass(frozen=True, slots=True)
class Callbacks:
    """Functions that are called while a run goes on.

    `on_start` gets the number of planned steps and the noise multiplier (None for an ordinary run), `on_step` the
    number of steps done, `on_measurement` each measurement, `on_epoch` the model and the outcome so far;
    `on_resume` gets the steps that the weights have seen where a run goes on, and returns what was measured by then;
    `stop_requested` is asked after every step.
    """

    on_start: Callable[[int, float | None], None] = lambda planned_steps, noise_multiplier: None
    on_step: Callable[[int], None] = lambda step: None
    on_measurement: Callable[[Measurement], None] = lambda measurement: None
    on_epoch: Callable[[nn.Module, RunOutcome], None] = lambda model, outcome: None
    on_resume: Callable[[int], tuple[Measurement, ...]] = lambda step: ()
    stop_requested: Callable[[], bool] = lambda: False
