import json

from click.testing import CliRunner, Result

from hushgrad.accounting import PoissonSampled, epsilon
from hushgrad.cli.main import main

PLAN = ["--noise-multiplier", "1.1", "--batch-size", "100", "--dataset-size", "10000", "--epochs", "2"]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["compare", *arguments])


def test_rows_have_every_sampler_with_its_relation() -> None:
    result = _run(*PLAN, "--delta", "1e-5", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.output)["rows"]
    assert rows[0]["epsilon"] == epsilon([(PoissonSampled(0.01, 1.1), 200)], 1e-5)
    assert {"add/remove-one", "replace-one", "zero-out"} < {row["adjacency"] for row in rows}
    assert all(row["epsilon"] is not None for row in rows)
    by_name = {row["sampling"]: row["epsilon"] for row in rows}
    assert by_name["balls in bins"] < rows[0]["epsilon"] < by_name["shuffled batches"]


def test_an_accountant_that_refuses_says_why_in_its_row() -> None:
    result = _run(*PLAN, "--delta", "1e-12")
    assert result.exit_code == 0
    assert "refused" in result.output
    assert "nan" not in result.output


def test_no_noise_is_infinite_everywhere() -> None:
    rows = json.loads(_run("--noise-multiplier", "0", *PLAN[2:], "--delta", "1e-5", "--json").output)["rows"]
    assert {row["epsilon"] for row in rows} == {"inf"}


def test_values_out_of_range_exit_1() -> None:
    assert _run(*PLAN, "--delta", "0").exit_code == 1
    assert _run("--noise-multiplier", "-1", *PLAN[2:], "--delta", "1e-5").exit_code == 1
