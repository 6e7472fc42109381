"""A figure that stands on several pages is one figure, and comes from the file of the runs."""

from __future__ import annotations

import csv
import json
import re
import statistics
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
Rows = list[list[str]]


def table_after(page: Path, heading: str) -> Rows:
    """Return the rows of the first table whose head begins with these words."""
    lines = page.read_text(encoding="utf-8").splitlines()
    start = next(number for number, line in enumerate(lines) if line.startswith(f"| {heading}"))
    rows = []
    for line in lines[start + 2 :]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip() for cell in line.strip("|").split("|")])
    assert rows
    return rows


def said(values: list[float], digits: int = 1) -> str:
    """Return a mean of several runs as the pages write it."""
    mean, spread = statistics.mean(values), statistics.stdev(values)
    return f"{100 * mean:.{digits}f}% ± {100 * spread:.{digits}f}"


def test_the_readme_states_the_accuracies_of_the_page_on_training() -> None:
    readme = table_after(ROOT / "README.md", "`hushgrad train --task ... --epsilon ...`")
    training = table_after(DOCS / "training.md", "task | ε = 1")
    assert [row[1:] for row in readme] == [row[1:] for row in training]


def test_the_page_on_training_states_what_its_runs_reached() -> None:
    """Each mean of three runs, where the table of runs holds three."""
    runs: dict[tuple[str, str], list[float]] = {}
    cnn, features = "MNIST with `--model cnn`", "digits with `--model scatter-linear`"
    named = {
        ("mnist-views.csv", "MNIST"): cnn,
        ("mnist-views.csv", "MNIST without views"): f"{cnn[:-1]} --augmentations 0`",
        ("features.csv", "digits"): features,
    }
    for name in ("shipped.csv", "mnist-views.csv", "features.csv"):
        for row in csv.DictReader((DOCS / "results" / name).open(encoding="utf-8")):
            if row["status"] == "completed":
                runs.setdefault((named.get((name, row["series"]), row["series"]), row["aim"]), []).append(
                    float(row["test_accuracy"])
                )
    stated = {row[0]: dict(zip(("ε=1", "ε=3", "ε=8", "ordinary"), row[1:], strict=True)) for row in _training()}
    compared = 0
    for (series, aim), values in runs.items():
        cell = stated.get(series, {}).get(aim)
        if cell is not None and len(values) == 3:
            assert cell == said(values), (series, aim)
            compared += 1
    assert compared >= 16


def _training() -> Rows:
    return table_after(DOCS / "training.md", "task | ε = 1")


def test_the_comparison_with_opacus_states_what_its_runs_reached() -> None:
    """Beside `±` each cell is a mean of the runs in the file, and so is that of ordinary training."""
    runs = json.loads((DOCS / "results" / "opacus.json").read_text(encoding="utf-8"))
    compared = 0
    for task, seeds, *cells in table_after(DOCS / "choosing-noise.md", "task | seeds"):
        kind = next(name for name in runs if name.lower() == task.split(" (")[0].lower())
        for way, cell in zip(("ordinary", "hushgrad", "opacus"), cells, strict=True):
            values = [run["test_accuracy"] for run in runs[kind][way]]
            if len(values) == int(seeds):
                assert cell == said(values), (task, way)
                compared += 1
    assert compared >= 8


@pytest.mark.parametrize("page", ["README.md", "docs/training.md"])
def test_the_command_for_the_zeros_and_ones_is_one_and_the_same(page: str) -> None:
    text = re.sub(r"\s*\\\n\s*|\s+", " ", (ROOT / page).read_text(encoding="utf-8"))
    assert (
        "--task mnist --data DIR --classes 0,1 --model cnn --noise-multiplier 5 --max-grad-norm 1 --batch-size 256 "
        "--epochs 15" in text
    )
