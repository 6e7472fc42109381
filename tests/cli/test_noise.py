"""`hushgrad noise`: which noise is better for a plan."""

from __future__ import annotations

import json

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main

ONE_PASS = ["noise", "--epsilon", "2", "--delta", "1e-6", "--steps", "256", "--sampling-rate", "0.00390625"]


def test_one_pass_is_better_with_correlated_noise_and_the_table_says_by_how_much() -> None:
    result = CliRunner().invoke(main, [*ONE_PASS, "--max-bands", "8"])
    assert result.exit_code == 0, result.output
    assert "Correlated noise is better for this plan" in result.output
    assert [line.split()[1] for line in result.output.splitlines() if line.startswith("banded")] == ["8", "4", "2"]


def test_as_json_every_option_has_its_error_and_its_memory() -> None:
    plan = ["noise", "--epsilon", "8", "--delta", "1e-6", "--steps", "40", "--steps-per-pass", "20", "--max-bands", "4"]
    found = json.loads(CliRunner().invoke(main, [*plan, "--json"]).output)
    assert {row["noise"] for row in found["options"]} == {"gaussian", "banded", "buffered"}
    assert found["best"] == "buffered"
    assert all(row["rmse"] > 0 and row["ratio"] <= 1 for row in found["options"])


@pytest.mark.parametrize("more", [[], ["--sampling-rate", "0.1", "--steps-per-pass", "3"]])
def test_a_plan_without_a_rate_or_a_pass_is_refused(more: list[str]) -> None:
    result = CliRunner().invoke(main, ["noise", "--epsilon", "2", "--delta", "1e-6", "--steps", "20", *more])
    assert result.exit_code == 1
    assert "DP101" in result.output
