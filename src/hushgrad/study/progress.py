"""The display of a run: a bar on a terminal and in a notebook, and plain lines."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from hushgrad.accounting.composition import Composition
from hushgrad.accounting.guarantee import delta_text, round_up
from hushgrad.accounting.meaning import in_plain_words
from hushgrad.extras import needs_extra
from hushgrad.session.spending import events_at
from hushgrad.study.account import spent_words
from hushgrad.study.class_weights import ClassWeights
from hushgrad.study.configuration import DEFAULT_DELTA, Privacy, RunConfig
from hushgrad.study.live import bar_for
from hushgrad.study.loggers import MetricLogger
from hushgrad.study.outcome import Measurement
from hushgrad.study.resuming import read_config, resume, with_changes
from hushgrad.study.run import Reporter, RunResult, run
from hushgrad.study.score_words import auc_text, beside_accuracy, recall_text, verdict
from hushgrad.study.status import beside
from hushgrad.study.tasks import Task
from hushgrad.text_table import hanging, wrapped

with needs_extra("study", "progress on the screen"):
    from rich.console import Console

PLAIN_LINES = 20
MOST_GROUPS = 8
"""So many subgroups are named at the end of a run; the report has all."""


def epsilon_text(epsilon: float | None) -> str:
    """Return ε for people, rounded up; "NOT PRIVATE" wherever there is none (None: ordinary training)."""
    if epsilon is None:
        return "NOT PRIVATE"
    return "ε = ∞ (NOT PRIVATE)" if math.isinf(epsilon) else f"ε = {round_up(epsilon, 3)}"


def measurement_text(measurement: Measurement) -> str:
    """Return a measurement as one line without the step."""
    beside = share_text(measurement.train_largest_class)
    parts = [f"loss {measurement.loss:.4f}", f"train accuracy {measurement.train_accuracy:.1%}{beside}"]
    if measurement.test_accuracy is not None:
        scores = measurement.test_scores
        beside = f"{share_text(scores.largest_share)}  AUC {auc_text(scores.auc)}" if scores is not None else ""
        parts.append(f"test accuracy {measurement.test_accuracy:.1%}{beside}")
    return "  ".join([*parts, epsilon_text(measurement.epsilon), f"{measurement.examples_per_second:,.0f} examples/s"])


def live_text(measurement: Measurement, tested: Measurement | None) -> str:
    """Return the line of a terminal without the step, short enough for 80 columns: of accuracies that of the test."""
    shown = f"accuracy {measurement.train_accuracy:.1%}{share_text(measurement.train_largest_class)}"
    if tested is not None and tested.test_accuracy is not None:
        scores = tested.test_scores
        beside = share_text(scores.largest_share) if scores is not None else ""
        shown = f"test {tested.test_accuracy:.1%}{beside}"
    rate = f"{measurement.examples_per_second:,.0f}/s"
    return f"loss {measurement.loss:.3f} {shown} {epsilon_text(measurement.epsilon)} {rate}"


def share_text(largest_share: float | None) -> str:
    """Return what stands beside an accuracy: the share of the largest class of the same examples, where it is known."""
    return "" if largest_share is None else f" (largest class {largest_share:.1%})"


def model_text(config: RunConfig) -> str:
    """Return the model's name, for an mlp with its hidden layers."""
    if config.model != "mlp":
        return config.model
    widths = ", ".join(map(str, config.hidden_sizes))
    return f"mlp (hidden layers: {widths})" if widths else "mlp (no hidden layer: linear)"


def clipping_text(privacy: Privacy) -> str:
    """Return how examples are clipped."""
    norm = f"clipping at {privacy.max_grad_norm:g}"
    return norm if privacy.clipping == "flat" else f"{privacy.clipping} {norm}"


def settings_text(config: RunConfig) -> str:
    """Return how the model is trained, beside noise, clipping and batches, as one line."""
    epochs = f"{config.epochs} epoch{'s' if config.epochs > 1 else ''}"
    first = "first β" if config.optimizer.startswith("adam") else "momentum"
    parts = [epochs, config.optimizer, f"learning rate {config.learning_rate:g}", f"{first} {config.momentum:g}"]
    if config.class_weights is not None:
        parts.append(f"class weights {weights_text(config.class_weights)}")
    if config.augmentations:
        parts.append(f"{config.augmentations} views of each image")
    if config.average_decay:
        parts.append(f"parameters averaged with decay {config.average_decay:g}")
    return ", ".join(parts)


def weights_text(weights: ClassWeights) -> str:
    """Return weights of classes as a command line gives them."""
    return weights if isinstance(weights, str) else ", ".join(f"{name}:{weight:g}" for name, weight in weights)


def say_on(console: Console, text: str) -> None:
    """Print a line without markup and colours: on a terminal wrapped between words, elsewhere as it is."""
    lines = [text]
    if console.is_terminal:
        lines = hanging(text, console.width) if text.startswith(" ") else wrapped(text, console.width)
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


class Screen:
    """Shows one run; use as a context manager around `run(..., reporter=screen.reporter())`."""

    def __init__(self, console: Console, config: RunConfig) -> None:
        self._console = console
        self._config = config
        self._planned_steps = 0
        self._next_line = 0.0
        self._tested: Measurement | None = None
        self._bar = bar_for(console)

    def __enter__(self) -> Screen:
        self._bar.start()
        self._bar.update(description="reading the data")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()

    def reporter(self) -> Reporter:
        """Return the callbacks for a run."""
        return Reporter(
            self._start,
            self._step,
            self._measurement,
            self._stop_request,
            self._resume,
            self._settings,
            self._account,
        )

    def say(self, text: str) -> None:
        """Print a line (see `say_on`)."""
        say_on(self._console, text)

    def _start(self, task: Task, planned_steps: int, noise_multiplier: float | None) -> None:
        config, privacy = self._config, self._config.privacy
        for notice in task.notices:
            self.say(f"note: {notice}")
        self._planned_steps = planned_steps
        self._bar.update(total=planned_steps)
        self.say(
            f"{task.description}: {len(task.train)} training and {len(task.test)} test examples, "
            f"{task.num_classes} classes; model {model_text(config)} on {config.device}"
        )
        clipping = "" if privacy is None else clipping_text(privacy)
        size = f"{config.batch_size}" if task.people is None else f"{config.batch_size} of {task.population} people"
        batches = f"batches of {size}, {planned_steps} steps"
        if privacy is None or noise_multiplier is None:
            self.say(f"ordinary training, NOT PRIVATE: {batches}")
        elif noise_multiplier == 0:
            self.say(f"training without noise, NOT PRIVATE: {clipping}; {batches}")
        else:
            grid = "" if privacy.noise == "gaussian" else f" ({privacy.noise})"
            noise = f"noise multiplier {noise_multiplier:.4g}{grid}, {clipping}"
            self.say(f"private training: {noise}, δ = {delta_text(privacy.delta)}; {batches}")

        self.say(f"settings: {settings_text(config)}")

    def _settings(self, config: RunConfig) -> None:
        self._config = config

    def _account(self, ledger: Path, before: Composition) -> None:
        delta = self._config.privacy.delta if self._config.privacy else DEFAULT_DELTA
        spent = f"has spent {spent_words(before, delta)}; this run goes on with it" if before else "begins here"
        self.say(f"the account in {ledger.name} {spent}")

    def _resume(self, step: int) -> None:
        self.say(f"going on after step {step}")

    def _step(self, step: int) -> None:
        self._bar.update(completed=step)

    def _measurement(self, measurement: Measurement) -> None:
        if measurement.test_accuracy is not None:
            self._tested = measurement
        self._bar.update(description=live_text(measurement, self._tested))
        due = measurement.step >= self._next_line or measurement.step == self._planned_steps
        # A terminal keeps a line of what was measured on test records; between them the bar says it.
        if due and (measurement.test_accuracy is not None or not self._console.is_terminal):
            self._next_line = measurement.step + self._planned_steps / PLAIN_LINES
            where = f"step {measurement.step}/{self._planned_steps}  epoch {measurement.epoch}"
            self.say(f"{where}  {measurement_text(measurement)}")

    def _stop_request(self) -> None:
        self._bar.update(description="stopping after this step; once more to abandon the run")


def run_on_screen(
    config: RunConfig,
    out: Path,
    *,
    loggers: Sequence[MetricLogger] = (),
    by: str | None = None,
    fit_batch_size: bool = False,
    shared_ledger: Path | None = None,
) -> RunResult:
    """Run, showing progress and then the end; the rest is as `run` takes it."""
    console = Console()
    with Screen(console, config) as screen:
        finished = run(
            config,
            out,
            screen.reporter(),
            loggers=loggers,
            by=by,
            fit_batch_size=fit_batch_size,
            shared_ledger=shared_ledger,
        )
    show_end(console, finished)
    return finished


def resume_on_screen(stopped: Path, *, changes: Mapping[str, Any], loggers: Sequence[MetricLogger] = ()) -> RunResult:
    """Go on with a run that was stopped, showing progress and then the end."""
    console = Console()
    with Screen(console, with_changes(read_config(stopped), changes)) as screen:
        finished = resume(stopped, screen.reporter(), changes=changes, loggers=loggers)
    show_end(console, finished)
    return finished


def result_lines(finished: RunResult) -> list[str]:
    """Return what the model reached on the test records, and a plain line where that is nothing."""
    outcome, classes = finished.outcome, finished.task.class_names
    accuracy, scores = outcome.test_accuracy, outcome.test_scores
    if accuracy is None:
        return []
    took = f"after {outcome.steps} steps, {outcome.seconds:.1f} s."
    groups = subgroup_lines(finished.summary["subgroups"])
    if scores is None:
        return [f"Test accuracy {accuracy:.2%} {took}", *groups]
    found = verdict(scores, classes)
    lines = [f"Test accuracy {beside_accuracy(scores, classes)} {took}", f"Recall: {recall_text(scores, classes)}."]
    return [*lines, *([] if found is None else [f"{found}."]), *groups]


def subgroup_lines(found: Mapping[str, Any] | None) -> list[str]:
    """Return the accuracy of each subgroup of the test records, the lowest first; nothing without a column."""
    groups = [] if found is None else [group for group in found["groups"] if group["count"]]
    if found is None or not groups:
        return []
    ranked = sorted(groups, key=lambda group: group["right"] / group["count"])
    shown = [f"{group['name']!r} {group['right'] / group['count']:.1%} of {group['count']}" for group in ranked]
    more = f", and {len(ranked) - MOST_GROUPS} groups with more" if len(ranked) > MOST_GROUPS else ""
    return [f"Accuracy by {found['column']!r}: {', '.join(shown[:MOST_GROUPS])}{more}."]


def meaning_lines(finished: RunResult) -> tuple[str, ...]:
    """Return what ε means in plain sentences, and that of all runs beside it on the same data; none without privacy."""
    spent = finished.outcome.spent
    if spent is None:
        return ()
    told = in_plain_words(spent.guarantee, events_at(finished.directory.ledger))
    delta = spent.guarantee.delta
    data = beside(finished.directory.path, delta)
    if data is None:
        return told
    others = len(data.runs) - 1
    many = "another run" if others == 1 else f"{others} other runs"
    status = f"hushgrad status {shlex.quote(str(finished.directory.path.parent))}"
    summed = f"{epsilon_text(data.private)} at δ = {delta_text(delta)} together"
    return (*told, f"With {many} beside it on the same data: {summed} ({status}).")


def show_end(console: Console, finished: RunResult) -> None:
    """Print the accuracy, the guarantee as a sentence, what it leaves out, and where the files are."""

    def say(text: str) -> None:
        say_on(console, text)

    outcome = finished.outcome
    if outcome.status == "interrupted":
        say(f"Interrupted after {outcome.steps} of {outcome.planned_steps} steps; the files hold exactly these.")
    if outcome.lost_steps:
        say(f"Lost after a checkpoint and charged all the same: {outcome.lost_steps} steps.")
    if outcome.status == "completed" and outcome.steps < outcome.planned_steps:
        short = outcome.planned_steps - outcome.steps
        say(f"Ended {short} steps short: they paid for lost ones (--spare-steps pays for those beforehand).")
    for sentence in result_lines(finished):
        say(sentence)
    say(str(finished.summary["guarantee"]))
    for sentence in meaning_lines(finished):
        say(sentence)
    say("Outside the guarantee:")
    for item in finished.summary["outside_the_guarantee"]:
        say(f"  - {item}")
    directory = finished.directory
    say(f"Files in {directory.path}:")
    files = (
        directory.summary,
        directory.metrics,
        directory.curves,
        directory.model,
        directory.config,
        directory.ledger,
    )
    for path in files:
        if path.exists():
            say(f"  {path.name}" if path.parent == directory.path else f"Shared ledger: {path}")
