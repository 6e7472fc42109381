"""Where measurements go besides the run's own folder: TensorBoard, W&B, MLflow, Trackio, or the user's own logger.

Each metric says whether ε covers it. A logger that sends metrics elsewhere gets only the covered ones, unless the user
asks for the rest: a training loss on a dashboard is a release that nobody charged.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from hushgrad.extras import needs_extra
from hushgrad.study.directory import NOT_COVERED, json_text
from hushgrad.study.outcome import Measurement


@dataclass(frozen=True, slots=True)
class Metric:
    """A number, and whether the guarantee for the training records covers it."""

    value: float
    covered: bool


class MetricLogger(Protocol):
    """A receiver of metrics. `local` says that they stay on this machine, with the owner of the data."""

    @property
    def local(self) -> bool:
        """Do the metrics stay here?"""

    def log(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Take the metrics measured after `step` steps."""

    def close(self) -> None:
        """Write what is left."""


def metrics_of(measurement: Measurement) -> dict[str, Metric]:
    """Return the metrics of a measurement; those that were not measured are left out.

    Times count as not covered, because the time of a step shows how many examples were drawn.
    """
    values = asdict(replace(measurement, test_scores=None))
    scores = measurement.test_scores
    if scores is not None:
        values |= {
            "test_largest_class": scores.largest_share,
            "test_balanced_accuracy": scores.balanced_accuracy,
            "test_auc": scores.auc,
        }
    return {
        name: Metric(float(value), name not in NOT_COVERED)
        for name, value in values.items()
        if name != "step" and value is not None
    }


def hand_over(logger: MetricLogger, step: int, metrics: Mapping[str, Metric], *, share_uncovered: bool = False) -> None:
    """Give a logger the metrics that it may see.

    Guarantee: a logger that is not local gets no metric that the guarantee leaves out, unless `share_uncovered` asks
    for it.
    """
    allowed = logger.local or share_uncovered
    logger.log(step, {name: metric for name, metric in metrics.items() if metric.covered or allowed})


@dataclass(frozen=True, slots=True)
class JsonLines:
    """Appends one line of JSON per call to a file."""

    path: Path
    local: bool = True

    def log(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Append {"step", "metrics", "not_covered"} in a single write."""
        line = {
            "step": step,
            "metrics": {name: metric.value for name, metric in metrics.items()},
            "not_covered": [name for name, metric in metrics.items() if not metric.covered],
        }
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW, 0o600)
        try:
            os.write(descriptor, (json_text(line, indent=None) + "\n").encode())
        finally:
            os.close(descriptor)

    def close(self) -> None:
        """Nothing is left to write."""


class TensorBoard:
    """Writes event files for TensorBoard, in the groups "covered" and "not_covered". Needs the `tensorboard` extra."""

    def __init__(self, folder: Path) -> None:
        with needs_extra("tensorboard", "--tensorboard"):
            from torch.utils.tensorboard import SummaryWriter
        # The file is made with the first metric: a run's folder must be empty until the run claims it.
        writer: Any = SummaryWriter
        # A run that goes on measures anew what it measured after its checkpoint; the earlier points give way.
        self._make: Callable[[int], Any] = lambda step: writer(str(folder), purge_step=step)
        self._writer: Any = None

    @property
    def local(self) -> bool:
        """Event files stay in their folder."""
        return True

    def log(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Add one scalar per metric; what is not finite is left out, as TensorBoard cannot draw it."""
        self._writer = self._writer or self._make(step)
        for name, metric in metrics.items():
            if math.isfinite(metric.value):
                group = "covered" if metric.covered else "not_covered"
                self._writer.add_scalar(f"{group}/{name}", metric.value, step)

    def close(self) -> None:
        """Flush and close the event file."""
        if self._writer is not None:
            self._writer.close()


@dataclass(frozen=True, slots=True)
class CallableLogger:
    """Hands metrics to a function `send({name: value}, step=step)`, which is how W&B, MLflow and Trackio take them.

    `CallableLogger(wandb.log)`, `CallableLogger(mlflow.log_metrics)`, `CallableLogger(trackio.log)`. Not local: it gets
    covered metrics only, unless the run is told to share the others.
    """

    send: Callable[..., object]
    local: bool = False

    def log(self, step: int, metrics: Mapping[str, Metric]) -> None:
        """Call the function, once, if there is anything to send."""
        values = {name: metric.value for name, metric in metrics.items()}
        if values:
            self.send(values, step=step)

    def close(self) -> None:
        """The other side closes its own run."""
