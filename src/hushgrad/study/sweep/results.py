"""What a sweep leaves beside its runs: tables and pictures, made from the runs' folders alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from hushgrad.study.configuration import DEFAULT_DELTA
from hushgrad.study.directory import replace_file
from hushgrad.study.sweep.folder import SweepFolder
from hushgrad.study.sweep.pictures import accuracy_picture, curves_picture
from hushgrad.study.sweep.plan import SweepPlan
from hushgrad.study.sweep.style import Picture
from hushgrad.study.sweep.table import Row, gather, read_rows, write_tables


def read_measurements(run_folder: Path) -> list[dict[str, Any]]:
    """Return a run's measurements, the lines of its metrics.jsonl; none for a run of an own function."""
    path = run_folder / "metrics.jsonl"
    if not path.exists():
        return []
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


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
        measured = [(row.aim, read_measurements(folder.finished(row.name))) for row in members]
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
