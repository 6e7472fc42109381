"""`hushgrad release`: statistics of a table, charged in a ledger."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner

from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.cli.main import main


def table(tmp_path: Path) -> Path:
    path = tmp_path / "people.csv"
    rows = [f"{20 + i % 41},{'F' if i % 3 else 'M'},{'hi' if i % 41 > 20 else 'lo'}" for i in range(820)]
    path.write_text("\n".join(["age,sex,income", *rows, ",M,lo"]) + "\n")
    return path


def asked(*arguments: str) -> dict[str, Any]:
    result = CliRunner().invoke(main, ["release", *arguments, "--json"])
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.output)
    return found


def test_mean_and_histogram_of_columns_are_one_account(tmp_path: Path) -> None:
    file, ledger = str(table(tmp_path)), str(tmp_path / "ledger")
    noise = ["--noise-multiplier", "1", "--delta", "1e-6", "--ledger", ledger]
    mean = asked("mean", file, "--column", "age", "0", "100", *noise)
    assert abs(mean["columns"][0]["mean"] - 40) < 1
    assert abs(mean["columns"][0]["std"] - 11.8) < 3
    counts = asked("histogram", file, "--column", "sex", "--categories", "F,M", *noise)["counts"]
    assert abs(counts["F"] - 546) < 7
    assert abs(counts["M"] - 275) < 7
    assert abs(counts["(all others)"]) < 7
    bins = asked("histogram", file, "--column", "age", "--edges", "30,50", *noise)
    assert list(bins["counts"]) == ["below 30", "30 to below 50", "50 and more, or no number"]
    assert bins["epsilon_of_this"] < bins["epsilon_of_all_so_far"]
    assert sum(count for _, count in read_ledger(ledger).events) == 3


def test_people_read_a_table_and_what_it_cost(tmp_path: Path) -> None:
    given = ["--column", "sex", "--categories", "F,M", "--epsilon", "0.5", "--delta", "1e-6"]
    result = CliRunner().invoke(
        main, ["release", "histogram", str(table(tmp_path)), *given, "--ledger", str(tmp_path / "l")]
    )
    assert result.exit_code == 0
    assert "(all others)" in result.output
    assert "epsilon of all so far" in result.output


def test_a_delta_that_is_none_is_refused_before_anything_is_charged(tmp_path: Path) -> None:
    given = ["--column", "sex", "--categories", "F,M", "--noise-multiplier", "5", "--delta", "2"]
    ledger = tmp_path / "l"
    result = CliRunner().invoke(main, ["release", "histogram", str(table(tmp_path)), *given, "--ledger", str(ledger)])
    assert result.exit_code == 1
    assert not ledger.exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["histogram", "--column", "sex"], "give --categories or --edges"),
        (["histogram", "--column", "sex", "--edges", "a"], "numbers separated by commas"),
        (["histogram", "--column", "none", "--categories", "a"], "DP104"),
        (["mean", "--column", "age", "5", "5"], "DP101"),
    ],
)
def test_a_wrong_question_costs_nothing(tmp_path: Path, arguments: list[str], said: str) -> None:
    command, *rest = arguments
    ledger = tmp_path / "ledger"
    given = ["release", command, str(table(tmp_path)), *rest, "--noise-multiplier", "1", "--ledger", str(ledger)]
    result = CliRunner().invoke(main, given)
    assert result.exit_code != 0
    assert said in result.output
    assert not ledger.exists()


def test_the_accuracy_of_a_run_is_charged_in_its_own_ledger_and_its_report_holds(tmp_path: Path) -> None:
    file, run = str(table(tmp_path)), str(tmp_path / "run")
    given = ["--task", "csv", "--data", file, "--target", "income", "--classes", "lo,hi", "--noise-multiplier", "1"]
    trained = CliRunner().invoke(main, ["train", *given, "--epochs", "1", "--batch-size", "128", "--out", run])
    assert trained.exit_code == 0, trained.output
    steps = read_ledger(f"{run}/ledger.jsonl").steps
    found = asked("accuracy", run, "--data", file, "--target", "income", "--noise-multiplier", "5", "--delta", "1e-5")
    assert 0 <= found["accuracy"] <= 1
    assert found["rows"] == 821
    view = read_ledger(f"{run}/ledger.jsonl")
    assert view.steps == steps
    assert view.events[-1][0].type == "release"
    report = CliRunner().invoke(main, ["report", run])
    assert report.exit_code == 0, report.output
