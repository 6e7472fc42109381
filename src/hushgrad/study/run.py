"""A complete run: settings in, a folder of results out."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from torch import nn

from hushgrad.accounting.composition import Composition
from hushgrad.extras import require
from hushgrad.notebook import facts, headline
from hushgrad.result_file import replace_file
from hushgrad.study.account import Account
from hushgrad.study.checkpointing import RunCheckpoint
from hushgrad.study.config_json import config_to_json
from hushgrad.study.configuration import RunConfig, fitting_batch_size
from hushgrad.study.curves import draw_curves
from hushgrad.study.directory import RunDirectory, json_text, kept_numbers
from hushgrad.study.fingerprint import require_same_data, write_fingerprint
from hushgrad.study.interruption import finish_step_on_interrupt
from hushgrad.study.loggers import MetricLogger, hand_over, metrics_of
from hushgrad.study.occupied import require_no_run
from hushgrad.study.outcome import Callbacks, Measurement, RunOutcome
from hushgrad.study.preparation import Learned, check_budget, prepare
from hushgrad.study.pretrained.classifier import header_words
from hushgrad.study.provenance import provenance_of
from hushgrad.study.shared_ledger import require_shareable, spent_before, write_data
from hushgrad.study.summary import summarise, title_of
from hushgrad.study.tasks import Task, load_task
from hushgrad.study.tasks.counted import COUNTED_BUCKETS, HASH
from hushgrad.study.tasks.encoder_file import encoding_as_json
from hushgrad.study.training import check_against_data, model_for, train


@dataclass(frozen=True, slots=True)
class RunResult:
    """A run that is over: where its files are, the task it ran on, the outcome and the summary as written."""

    directory: RunDirectory
    task: Task
    outcome: RunOutcome
    summary: dict[str, Any]

    def _repr_html_(self) -> str:
        outcome, accuracy = self.outcome, self.outcome.test_accuracy
        shown = {
            "status": outcome.status,
            "test accuracy": None if accuracy is None else f"{accuracy:.2%}",
            "steps": f"{outcome.steps} of {outcome.planned_steps}",
            "seconds": f"{outcome.seconds:.1f}",
            "files in": self.directory.path,
        }
        said = headline(str(self.summary["guarantee"]), good=outcome.private)
        return f"{said}{facts(self.task.description, shown)}"


@dataclass(frozen=True, slots=True)
class Reporter:
    """Functions that a display passes in, called while a run goes on.

    `on_start` gets the task, the planned steps and the noise multiplier (None for an ordinary run), `on_step` the steps
    done, `on_measurement` each measurement; `on_resume` gets the step at which a run goes on; `on_stop_request` is
    called in the signal handler, and `on_settings` gets the settings once the data have been read. `on_account` gets a
    ledger that the run shares with others, and what it holds of them.
    """

    on_start: Callable[[Task, int, float | None], None] = lambda task, planned_steps, noise_multiplier: None
    on_step: Callable[[int], None] = lambda step: None
    on_measurement: Callable[[Measurement], None] = lambda measurement: None
    on_stop_request: Callable[[], None] = lambda: None
    on_resume: Callable[[int], None] = lambda step: None
    on_settings: Callable[[RunConfig], None] = lambda config: None
    on_account: Callable[[Path, Composition], None] = lambda ledger, before: None


SILENT = Reporter()


def run(
    config: RunConfig,
    out: Path,
    reporter: Reporter = SILENT,
    *,
    loggers: Sequence[MetricLogger] = (),
    share_uncovered: bool = False,
    by: str | None = None,
    fit_batch_size: bool = False,
    shared_ledger: Path | None = None,
) -> RunResult:
    """Load the task, train, and leave the results in the folder `out`.

    `loggers` get every measurement as well; those that are not local get what ε covers, unless `share_uncovered`. `by`
    is who runs it, for provenance.json and the report.

    `fit_batch_size` says that nobody chose the batch size: where the data are few, it becomes a fourth of them.

    `shared_ledger` is a ledger that the runs on one data set share: the run goes on with the account in it, or begins
    it. Target and budget, and the ε that is stated, are then those of the whole account. What cannot go on with it is
    refused before anything is written (`require_shareable`).

    The folder is checked before data is read, and created once the data is known to suit the settings. Summary and
    model are written at the end of every epoch. Ctrl-C or SIGTERM ends the run after the running step; all files are
    then written as at a normal end, and the summary's `status` is "interrupted". A private run that was stopped in any
    way goes on by `resume`.

    Guarantee: the epsilon in summary.json is never below what the model beside it has cost.
    Guarantee: in a shared ledger it is that of all runs in the account so far.
    """
    require_no_run(out)
    task = load_task_of(config)
    if fit_batch_size:
        config = with_fitting_batches(config, task)
    require_fitting(config, task)
    provenance = provenance_of(config.options.data, by)
    account = None if shared_ledger is None else Account.joining(shared_ledger, out)
    if account is not None:
        require_shareable(account.ledger, config, task, provenance)
    before = [] if account is None else spent_before(account)
    check_budget(config, task, before)
    directory = RunDirectory.claim(out)
    directory.write_config(config_to_json(config))
    directory.write_provenance(provenance)
    if account is not None:
        write_data(account.ledger, config, provenance)
        directory.write_account(account)
        reporter.on_account(account.ledger, before)
    return carry_out(config, task, directory, reporter, loggers=loggers, share_uncovered=share_uncovered)


def load_for(config: RunConfig) -> Task:
    """Return the task of a run, once all that the run needs is known to be there and to suit it."""
    task = load_task_of(config)
    require_fitting(config, task)
    check_budget(config, task)
    return task


def load_task_of(config: RunConfig) -> Task:
    """Return the task of a run, once the packages that the run needs are known to be there."""
    require("matplotlib", "safetensors", extra="study", what="a training run")  # rather now than at its end
    return load_task(config.task, config.options)


def require_fitting(config: RunConfig, task: Task) -> None:
    """Raise what is wrong with the settings of a run for these data, but for its budget."""
    check_against_data(config, task)
    if config.base is not None:
        model_for(config, task)  # rather now than in a folder that was claimed


def with_fitting_batches(config: RunConfig, task: Task) -> RunConfig:
    """Return the settings with batches of at most a fourth of the data, of which the number is public."""
    return replace(config, batch_size=fitting_batch_size(config.batch_size, task.population))


def carry_out(
    config: RunConfig,
    task: Task,
    directory: RunDirectory,
    reporter: Reporter,
    *,
    loggers: Sequence[MetricLogger],
    share_uncovered: bool,
) -> RunResult:
    """Train in a folder that holds the settings, from its checkpoint if there is one, to the planned end."""
    reporter.on_settings(config)
    account = directory.account
    ledger = account.ledger if config.privacy else None
    prepared = prepare(config, task, ledger, _learned(directory))
    task = prepared.task
    if task.vocabulary_buckets is not None and not directory.vocabulary.exists():
        words = {"hash": HASH, "buckets": COUNTED_BUCKETS, "kept": task.vocabulary_buckets}
        replace_file(directory.vocabulary, (json_text(words, indent=None) + "\n").encode())
    if task.class_counts is not None and not directory.class_counts.exists():
        counted = {"classes": task.class_names, "counts": task.class_counts}
        replace_file(directory.class_counts, (json_text(counted, indent=None) + "\n").encode())
    if task.encoder is not None:
        encoding = encoding_as_json(task.encoder, task.class_names)
        replace_file(directory.encoding, (json_text(encoding, indent=None) + "\n").encode())
    checkpoint = RunCheckpoint.of(directory.checkpoint, config) if config.privacy else None
    if checkpoint is not None and (checkpoint.path.exists() or directory.fingerprint.exists()):
        require_same_data(directory.fingerprint, task)
    elif checkpoint is not None:
        write_fingerprint(directory.fingerprint, task)

    def record(measurement: Measurement) -> None:
        directory.append_measurement(measurement)
        for logger in loggers:
            hand_over(logger, measurement.step, metrics_of(measurement), share_uncovered=share_uncovered)
        reporter.on_measurement(measurement)

    def go_on(step: int) -> tuple[Measurement, ...]:
        reporter.on_resume(step)
        return directory.cut_measurements(step)

    def write(model: nn.Module, outcome: RunOutcome) -> None:
        summary = summarise(config, prepared, model, outcome)
        directory.write_summary(summary)
        facts = {"task": config.task, "model": config.model, "steps": str(outcome.steps)}
        directory.write_model(model, {**facts, **header_words(model), "guarantee": summary["guarantee"]})

    with finish_step_on_interrupt(reporter.on_stop_request) as stop_requested:
        callbacks = Callbacks(
            on_start=lambda planned_steps, noise_multiplier: reporter.on_start(task, planned_steps, noise_multiplier),
            on_step=reporter.on_step,
            on_measurement=record,
            on_epoch=write,
            on_resume=go_on,
            stop_requested=stop_requested,
        )
        model, outcome = train(config, task, callbacks, ledger=ledger, phase=account.phase, checkpoint=checkpoint)
        write(model, outcome)
        delta = config.privacy.delta if config.privacy else None
        picture = draw_curves(outcome.measurements, title=title_of(config), delta=delta)
        replace_file(directory.curves, picture)
        if outcome.status == "completed":
            directory.forget_checkpoint()
    for logger in loggers:
        logger.close()
    return RunResult(directory, task, outcome, summarise(config, prepared, model, outcome))


def _learned(directory: RunDirectory) -> Learned:
    """Return what the run has learned and paid for: a vocabulary, counts of classes; nothing at its start."""
    buckets, counts = kept_numbers(directory.vocabulary, "kept"), kept_numbers(directory.class_counts, "counts")
    return Learned(None if buckets is None else tuple(map(int, buckets)), counts)
