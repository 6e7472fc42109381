"""Do the metrics of a run follow one another, and say what the summary and the ledger say?"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from typing import Any

from hushgrad.accounting.ledger.view import LedgerView
from hushgrad.study.report.comparison import Comparison, shown
from hushgrad.study.report.document import plain
from hushgrad.study.report.run_files import LEDGER, METRICS, SUMMARY, RunFiles, first, lost_in
from hushgrad.study.report.statements import held_by
from hushgrad.study.report.values import same, stated_epsilon


def metrics_rows(files: RunFiles) -> Iterator[Comparison]:
    """Compare the lines of the metrics with one another and with the summary."""
    rows = files.measurements
    if not rows:
        if files.said("test_accuracy") is not None and not files.is_of_an_own_function:
            yield Comparison(
                "the measurements of a run that states an accuracy",
                False,
                {SUMMARY: f"test accuracy {shown(files.said('test_accuracy'))}", METRICS: "nothing"},
            )
        return
    ordered = all(
        earlier["step"] < later["step"] and _grows(earlier["epsilon"], later["epsilon"])
        for earlier, later in pairwise(rows)
    )
    yield Comparison("the lines of metrics.jsonl follow one another", ordered, {})
    if files.summary is None:
        return
    steps, last = files.said("steps"), rows[-1]["step"]
    if steps is None:
        return
    ahead = not files.has_ended and isinstance(steps, int) and steps <= last
    yield Comparison(
        "steps in summary.json and in metrics.jsonl",
        same(steps, last) or ahead,
        {SUMMARY: plain(steps), METRICS: plain(last)},
    )
    measured = files.measured_accuracy()
    yield Comparison(
        "test accuracy in summary.json and in metrics.jsonl",
        same(files.said("test_accuracy"), measured),
        {SUMMARY: shown(files.said("test_accuracy")), METRICS: shown(measured)},
    )


def _grows(earlier: Any, later: Any) -> bool:
    if earlier is None or later is None:
        return earlier is None and later is None
    return stated_epsilon(earlier) <= stated_epsilon(later) or same(earlier, later)


def spent_in_metrics(files: RunFiles, ledger: LedgerView, delta: float) -> Iterator[Comparison]:
    """Compare the last ε that was measured with what the ledger gives for the same steps."""
    if not files.measurements or files.measurements[-1]["epsilon"] is None:
        return
    last, charged = files.measurements[-1], files.steps(ledger)
    spent_on = last["step"] + lost_in(last)
    yield Comparison(
        "steps in metrics.jsonl and in the ledger",
        spent_on <= charged,
        {METRICS: plain(last["step"]), LEDGER: plain(charged)},
    )
    spent = held_by(first(ledger.events, spent_on + files.before), delta, ledger.contract).epsilon
    yield Comparison(
        "ε in metrics.jsonl and from the ledger",
        same(last["epsilon"], spent),
        {METRICS: f"{shown(last['epsilon'])} after {last['step']} steps", LEDGER: shown(spent)},
    )
