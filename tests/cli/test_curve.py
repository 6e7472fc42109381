import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hushgrad.accounting import Contract, Gaussian, Ledger, PoissonSampled, epsilon
from hushgrad.cli.main import main

PLAN = ["--noise-multiplier", "2", "--sample-rate", "0.02", "--steps", "100"]
# Without sampling there is an exact formula, which takes no time.
QUICK = ["--noise-multiplier", "4", "--sampling", "none", "--passes", "3"]


def _run(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["curve", *map(str, arguments)])


def test_the_curve_is_epsilon_at_every_delta(tmp_path: Path) -> None:
    picture = tmp_path / "curve.png"
    pytest.importorskip("matplotlib")
    result = _run(*PLAN, "--json", "--png", picture)
    assert result.exit_code == 0, result.output
    value = json.loads(result.output)
    for row in value["epsilon"]:
        assert row["epsilon"] == epsilon([(PoissonSampled(0.02, 2.0), 100)], row["delta"])
    powers = [row["true_positive_rate"] for row in value["attack"]]
    assert powers == sorted(powers)
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_a_ledgers_curve_in_text(tmp_path: Path) -> None:
    with Ledger(tmp_path / "ledger.jsonl", contract=Contract("observed", "operating system")) as ledger:
        ledger.charge(Gaussian(4.0), 3)
    result = _run("--ledger", tmp_path / "ledger.jsonl")
    assert result.exit_code == 0
    assert "true positives at most" in result.output
    assert "Membership advantage" in result.output


def test_no_plan_is_wrong_usage_and_an_unwritable_picture_one_clean_line(tmp_path: Path) -> None:
    assert _run().exit_code == 2
    assert _run("--ledger", tmp_path / "x", *PLAN).exit_code == 2
    (tmp_path / "file").write_text("")
    unwritable = _run(*QUICK, "--png", tmp_path / "file" / "such.png")
    assert unwritable.exit_code == 1
    assert unwritable.stderr.startswith("Error: DP101 --png: ")
