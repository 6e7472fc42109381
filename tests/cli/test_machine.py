"""`hushgrad machine` from the outside."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main
from hushgrad.gradients.machine import FILE_VARIABLE


@pytest.fixture
def runner(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> CliRunner:
    monkeypatch.delenv(FILE_VARIABLE, raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return CliRunner()


def test_constants_that_were_measured_are_used_from_then_on(runner: CliRunner) -> None:
    shipped = json.loads(runner.invoke(main, ["machine", "--json"]).output)
    measured = json.loads(runner.invoke(main, ["machine", "--measure", "--json"]).output)
    again = json.loads(runner.invoke(main, ["machine", "--json"]).output)
    assert not shipped["is_measured"]
    assert measured["is_measured"]
    assert again == measured
    assert all(measured[name] >= 0 for name in measured if name not in ("device", "is_measured"))


def test_the_table_says_where_the_constants_come_from(runner: CliRunner) -> None:
    shown = runner.invoke(main, ["machine"])
    assert shown.exit_code == 0
    assert "as they come with the package" in shown.output


def test_an_unknown_device_is_one_line(runner: CliRunner) -> None:
    result = runner.invoke(main, ["machine", "--device", "abacus"])
    assert result.exit_code == 1
    assert "abacus" in result.output
    assert "Traceback" not in result.output
