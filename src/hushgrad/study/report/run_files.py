"""The files of one run as values, read in the order in which they can be read while the run goes on.

A step is charged in the ledger before it runs, measured in the metrics, summarised at an epoch's end, and its model
written after the summary. What is read later must not be behind: so the model is read first and the ledger last.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushgrad.accounting.composition import Composition, count_steps, steps_of
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.accounting.ledger.view import LedgerView, read_ledger, view_when
from hushgrad.arguments import open_unit_interval
from hushgrad.study.account import own_part, own_steps
from hushgrad.study.directory import RunDirectory, kept_numbers
from hushgrad.study.model_file import ModelContent, read_model
from hushgrad.study.summary_file import damaged_summary, read_summary
from hushgrad.study.sweep.results import read_measurements

LEDGER, SUMMARY, METRICS, MODEL = "ledger.jsonl", "summary.json", "metrics.jsonl", "model.safetensors"
ENDED = ("completed", "interrupted")


@dataclass(frozen=True, slots=True)
class RunFiles:
    """What the files of a run say; None, or nothing, for one that is not there.

    `known` is what the ledger said when it ended with the record whose hash the summary keeps; None where the summary
    keeps none (it is of an older version) or where the ledger never had that record. `is_torn`: whether the last line
    of the metrics was cut off while it was written. `class_counts`: the noised counts that weights follow from.
    `phase`: the name of the run's part of a ledger that it shares with others; None where the ledger is its own.
    """

    folder: Path
    model: ModelContent | None
    summary: Mapping[str, Any] | None
    measurements: list[dict[str, Any]]
    ledger: LedgerView | None
    known: LedgerView | None
    is_torn: bool = False
    class_counts: tuple[float, ...] | None = None
    phase: str | None = None

    @classmethod
    def read(cls, folder: Path) -> RunFiles:
        """Read the files in `folder`. Raises LedgerError for a damaged ledger, InvalidArgumentError for another."""
        model = read_model(folder / MODEL)
        summary = read_summary(folder)
        measured = read_measurements(folder)
        account = RunDirectory(folder).account
        path = account.ledger
        ledger = read_ledger(path) if path.exists() else None
        anchor = anchor_in(summary)
        counts = kept_numbers(RunDirectory(folder).class_counts, "counts")
        known = view_when(path, anchor) if ledger is not None and anchor is not None else None
        return cls(folder, model, summary, measured.rows, ledger, known, measured.is_torn, counts, account.phase)

    def said(self, key: str) -> Any:
        """Return a value of the summary, None where it says nothing."""
        return None if self.summary is None else self.summary.get(key)

    def delta(self, default: float) -> float:
        """Return the δ of the summary, `default` where it names none. Raises InvalidArgumentError for what is no δ."""
        stated = self.said("delta")
        return default if stated is None else open_unit_interval("delta in summary.json", stated)

    @property
    def is_of_an_own_function(self) -> bool:
        """Whether the run was one of a function of the user's own, which leaves a ledger and a summary alone."""
        return self.said("results") is not None

    @property
    def has_ended(self) -> bool:
        """Whether the summary says that nothing more was to come."""
        return self.said("status") in ENDED

    @property
    def prepared(self) -> int:
        """How many steps of the ledger trained nothing: earlier versions charged the counting of a vocabulary so."""
        if self.ledger is None or self.said("vocabulary_noise_multiplier") is None:
            return 0
        return count_steps(self.ledger.events[:1])  # that of this version is no step

    @property
    def lost(self) -> int:
        """How many steps the summary says were charged and then taken away by crashes."""
        return lost_in(self.summary or {})

    def steps(self, ledger: LedgerView) -> int:
        """Return the run's steps of training in `ledger`."""
        return len(own_steps(ledger, self.phase)) - self.prepared

    @property
    def before(self) -> int:
        """How many steps the ledger holds before the run's first step of training."""
        return 0 if self.ledger is None else own_steps(self.ledger, self.phase).start + self.prepared

    def own(self, events: Composition) -> Composition:
        """Return what the run's steps of training are among the first events of the ledger, and what came with them."""
        if self.phase is None or self.ledger is None:
            return events[1:] if self.prepared else events
        return own_part(events, own_steps(self.ledger, self.phase))

    def noises(self, events: Composition) -> list[float]:
        """Return the noise multipliers of the steps of training among the first events of the ledger, each once."""
        return sorted({event.noise_multiplier for event, _ in steps_of(self.own(events))})

    def measured_accuracy(self) -> float | None:
        """Return the last test accuracy that was measured by the step which the summary and the model are of."""
        row = self.measured()
        return None if row is None else row["test_accuracy"]

    def measured(self) -> dict[str, Any] | None:
        """Return the measurement of that accuracy."""
        steps = self.said("steps")
        then = [row for row in self.measurements if not isinstance(steps, int) or row["step"] <= steps]
        return next((row for row in reversed(then) if row["test_accuracy"] is not None), None)

    def described(self) -> Composition:
        """Return the part of the ledger that the summary describes: up to the record it knows, or its steps."""
        if self.ledger is None:
            return []
        if self.known is not None:
            return self.known.events
        steps = self.said("steps")
        return (
            first(self.ledger.events, steps + self.lost + self.before) if isinstance(steps, int) else self.ledger.events
        )


def lost_in(said: Mapping[str, Any]) -> int:
    """Return the lost steps in a summary or in a measurement; an older version knew none."""
    lost = said.get("lost_steps")
    return lost if isinstance(lost, int) else 0


def anchor_in(summary: Mapping[str, Any] | None) -> LedgerHead | None:
    """Return the record of the ledger that a summary keeps the hash of; None where it keeps none.

    Raises InvalidArgumentError where what it keeps cannot be one.
    """
    end = None if summary is None else summary.get("ledger")
    if end is None:
        return None
    if not isinstance(end, dict) or type(end.get("records")) is not int or not isinstance(end.get("hash"), str):
        raise damaged_summary("what it keeps of the ledger is not a record and its hash")
    return LedgerHead(end["records"] - 1, end["hash"])


def first(composition: Composition, steps: int) -> Composition:
    """Return a composition up to its step number `steps`, what was released before it included."""
    part: Composition = []
    for event, count in composition:
        if steps <= 0:
            break
        taken = min(count, steps) if event.is_step else count
        part = [*part, (event, taken)]
        steps -= taken if event.is_step else 0
    return part
