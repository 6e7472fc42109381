"""What a sweep leaves beside its runs: tables and pictures, made from the runs' folders alone."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushgrad.errors import InvalidArgumentError
from hushgrad.result_file import replace_file
from hushgrad.study.configuration import DEFAULT_DELTA
from hushgrad.study.directory import from_json
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.pictures import accuracy_picture, curves_picture
from hushgrad.study.sweep.plan import SweepPlan
from hushgrad.study.sweep.style import Picture
from hushgrad.study.sweep.table import Row, gather, read_rows, write_tables


@dataclass(frozen=True, slots=True)
class MetricLines:
    """The measurements of a run that are whole, and whether the last line was cut off while it was written."""

    rows: list[dict[str, Any]]
    is_torn: bool = False


def read_measurements(run_folder: Path) -> MetricLines:
    """Return a run's measurements, the lines of its metrics.jsonl; none for a run of an own function.

    A line ends with a line break. One without it at the end, which a crash may leave, counts if it is whole all the
    same. Raises InvalidArgumentError for any other line that is no measurement.
    """
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return MetricLines([])
    rows: list[dict[str, Any]] = []
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            row = from_json(line)
        except ValueError:
            row = None
        if not _is_measurement(row):
            if number == len(lines) and row is None and not line.endswith((b"\n", b"\r")):
                return MetricLines(rows, is_torn=True)
            raise InvalidArgumentError(
                "the line is damaged: it is not a measurement",
                where=f"line {number} of a run's metrics.jsonl",
                cure="Remove the line, or run anew",
            )
        rows.append(row)
    return MetricLines(rows)


def _is_measurement(row: Any) -> bool:
    """Is this a step with its test accuracy and ε, each a number, null or (ε) "inf"?"""
    if not isinstance(row, dict) or not {"step", "test_accuracy", "epsilon"} <= row.keys():
        return False
    if type(row["step"]) is not int or row["step"] < 0:
        return False
    numbers = [row["test_accuracy"], None if row["epsilon"] == "inf" else row["epsilon"]]
    return all(value is None or type(value) in (int, float) for value in numbers)


def delta_of(rows: list[Row]) -> float:
    """Return the δ of the sweep: the same for all of its private runs."""
    return next((row.delta for row in rows if row.delta is not None), DEFAULT_DELTA)


def pictures_of(folder: SweepFolder, plan: SweepPlan, rows: list[Row]) -> dict[str, Picture]:
    """Return the pictures by file name (without ending), none before the first run is finished."""
    groups = gather(rows)
    if not groups:
        return {}
    delta = delta_of(rows)
    pictures = {"accuracy": accuracy_picture(groups, title=plan.name, delta=delta)}
    for index, series in enumerate(dict.fromkeys(group.series for group in groups), start=1):
        members = [row for row in rows if row.series == series and row.status == "completed"]
        measured = [(row.aim, read_measurements(folder.finished(row.name)).rows) for row in members]
        measured = [(aim, lines) for aim, lines in measured if lines]
        if measured:
            pictures[f"curves-{index}"] = curves_picture(measured, title=f"{plan.name}: {series}", delta=delta)
    return pictures


def write_results(folder: SweepFolder, plan: SweepPlan) -> list[Row]:
    """Replace the tables and the pictures and return the rows."""
    rows = read_rows(folder, plan)
    write_tables(folder, rows)
    for name, picture in pictures_of(folder, plan, rows).items():
        replace_file(folder.path / f"{name}.png", picture.png)
        replace_file(folder.path / f"{name}.svg", picture.svg)
    return rows
