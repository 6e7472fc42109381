"""The table of a sweep: one row per planned run, and the same gathered over seeds.

Rows are read from the runs' own folders, so that the table of a resumed sweep is that of one that was never stopped.
Times are left out: they belong to the machine, not to the result.
"""

from __future__ import annotations

import csv
import io
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.result_file import replace_file
from hushgrad.study.csv_cells import as_text_cell
from hushgrad.study.directory import json_text
from hushgrad.study.summary_file import damaged_summary, read_summary
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.plan import ORDINARY, PlannedRun, SweepPlan


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one run. `status` is "completed", "failed", "running" or "waiting".

    `noise_multiplier` is None for ordinary training, `epsilon` infinite without noise; both, and the accuracy (a
    fraction), are None until the run is completed. `largest_class` is the share of the largest class of the test
    records: what always answering it reaches; None where the run does not say it.
    """

    name: str
    label: str
    series: str
    aim: str
    seed: int
    status: str
    noise_multiplier: float | None
    epsilon: float | None
    delta: float | None
    steps: int | None
    test_accuracy: float | None
    error: str | None
    largest_class: float | None = None


@dataclass(frozen=True, slots=True)
class Group:
    """The completed runs of one series and aim, over seeds. `spread` is their standard deviation (None for one)."""

    label: str
    series: str
    aim: str
    noise_multiplier: float | None
    epsilon: float
    runs: int
    mean: float
    spread: float | None
    lowest: float
    highest: float
    largest_class: float | None = None


def read_rows(folder: SweepFolder, plan: SweepPlan, running: frozenset[str] = frozenset()) -> list[Row]:
    """Return a row for every planned run, in the plan's order."""
    return [_row(folder, run, running) for run in plan.runs]


def _row(folder: SweepFolder, run: PlannedRun, running: frozenset[str]) -> Row:
    def row(status: str, summary: dict[str, Any], error: str | None = None) -> Row:
        return Row(
            name=run.name,
            label=run.label,
            series=run.series,
            aim=run.aim,
            seed=run.seed,
            status=status,
            noise_multiplier=summary.get("noise_multiplier"),
            epsilon=number(summary.get("epsilon")),
            delta=summary.get("delta"),
            steps=summary.get("steps"),
            test_accuracy=number(summary.get("test_accuracy")),
            error=error,
            largest_class=number((summary.get("test_scores") or {}).get("largest_class_share")),
        )

    if folder.is_finished(run.name):
        summary = read_summary(folder.finished(run.name))
        if summary is None:
            raise InvalidArgumentError(
                "its summary.json is missing", where=f"runs/{run.name}", cure="Restore the file, or remove the folder"
            )
        return row("completed", summary)
    if run.name in running:
        return row("running", {})
    failure = folder.failure(run.name)
    return row("failed", {}, f"{failure['kind']}: {failure['message']}") if failure else row("waiting", {})


def number(value: Any) -> float | None:
    """Return a number of a summary: JSON has no infinity, so it may be the string "inf".

    Raises InvalidArgumentError for anything else.
    """
    if value is None or (type(value) in (int, float) and not math.isnan(value)):
        return None if value is None else float(value)
    if value != "inf":
        raise damaged_summary("it holds something else where a number belongs")
    return math.inf


def gather(rows: Sequence[Row]) -> list[Group]:
    """Return the completed runs gathered over seeds, in the order in which they were planned."""
    together: dict[tuple[str, str], list[Row]] = {}
    for row in rows:
        if row.status == "completed" and row.test_accuracy is not None:
            together.setdefault((row.series, row.aim), []).append(row)
    order = {(row.series, row.aim): place for place, row in reversed(list(enumerate(rows)))}
    return [_group(together[key]) for key in sorted(together, key=order.__getitem__)]


def _group(rows: list[Row]) -> Group:
    accuracies = [row.test_accuracy for row in rows if row.test_accuracy is not None]
    first = rows[0]
    return Group(
        label=first.label,
        series=first.series,
        aim=first.aim,
        noise_multiplier=first.noise_multiplier,
        epsilon=max(math.inf if row.epsilon is None else row.epsilon for row in rows),
        runs=len(rows),
        mean=statistics.fmean(accuracies),
        spread=statistics.stdev(accuracies) if len(accuracies) > 1 else None,
        lowest=min(accuracies),
        highest=max(accuracies),
        largest_class=max((row.largest_class for row in rows if row.largest_class is not None), default=None),
    )


def write_tables(folder: SweepFolder, rows: Sequence[Row]) -> None:
    """Replace table.json (all rows and groups) and table.csv (rows)."""
    value = {"runs": [asdict(row) for row in rows], "over_seeds": [asdict(group) for group in gather(rows)]}
    replace_file(folder.path / "table.json", (json_text(value, indent=2) + "\n").encode())
    replace_file(folder.path / "table.csv", csv_text(rows).encode())


def csv_text(rows: Sequence[Row]) -> str:
    """Return the rows as CSV. Text that a spreadsheet would run as a formula is kept text by a leading apostrophe."""
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(Row.__dataclass_fields__)
    for row in rows:
        writer.writerow([_cell(value) for value in asdict(row).values()])
    return out.getvalue()


def _cell(value: Any) -> Any:
    return as_text_cell(value) if isinstance(value, str) else value


def is_ordinary(group: Group) -> bool:
    """Is this training without privacy?"""
    return group.aim == ORDINARY


def best(groups: Sequence[Group], score: Callable[[Group], float] = lambda group: group.mean) -> Group | None:
    """Return the group with the highest score, None if there is none."""
    return max(groups, key=score, default=None)
