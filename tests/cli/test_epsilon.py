import json
import math
import re
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hushgrad import __version__
from hushgrad.accounting import Contract, Ledger, PoissonSampled, RandomAllocation, epsilon
from hushgrad.cli.main import main

PLAN = ["--noise-multiplier", "1.1", "--sampling-rate", "0.01", "--steps", "1000", "--delta", "1e-5"]


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["epsilon", *arguments])


def _refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def _json(result: Result) -> dict:  # type: ignore[type-arg]
    assert result.exit_code == 0, result.output
    return json.loads(result.output, parse_constant=_refuse_constant)  # type: ignore[no-any-return]


def test_json_is_one_object_with_epsilon() -> None:
    value = _json(_run(*PLAN, "--json"))
    assert value["epsilon"] == epsilon([(PoissonSampled(0.01, 1.1), 1000)], 1e-5)
    assert (value["delta"], value["steps"], value["private"]) == (1e-5, 1000, True)
    assert "add/remove-one" in value["sentence"]


def test_text_has_the_rounded_epsilon_and_the_sentence() -> None:
    result = _run(*PLAN)
    assert result.exit_code == 0
    assert result.output.splitlines()[0].split() == ["epsilon", "1.516"]
    assert "add/remove-one" in result.output


def test_rdp_is_larger() -> None:
    assert _json(_run(*PLAN, "--json", "--accountant", "rdp"))["epsilon"] > _json(_run(*PLAN, "--json"))["epsilon"]


def test_batch_size_data_set_size_and_epochs_give_rate_and_steps() -> None:
    value = _json(_run("--noise-multiplier", "1", "--batch-size", "300", "--dataset-size", "1000", "--epochs", "2",
                       "--delta", "1e-5", "--json"))  # fmt: skip
    assert (value["sampling_rate"], value["steps"]) == (0.3, 8)


def test_passes_without_sampling_are_charged_under_zero_out() -> None:
    value = _json(
        _run("--noise-multiplier", "10", "--sampling", "none", "--passes", "100", "--delta", "1e-5", "--json")
    )
    assert value["epsilon"] == pytest.approx(4.377178095681137)
    assert value["adjacency"] == "zero-out"


def test_random_batches_are_planned_by_bins_and_passes_or_by_the_data() -> None:
    noise = ("--noise-multiplier", "1.5", "--sampling", "balls-in-bins", "--delta", "1e-5", "--json")
    value = _json(_run(*noise, "--bins", "10", "--passes", "3"))
    assert value["epsilon"] == epsilon([(RandomAllocation(10, 1.5, index), 1) for index in range(3)], 1e-5)
    assert (value["adjacency"], value["bins"], value["passes"]) == ("add/remove-one", 10, 3)
    assert 0 < value["numerical_error"] < 0.01 * value["epsilon"]
    of_data = ("--batch-size", "300", "--dataset-size", "1000", "--epochs", "2", "--participations", "3")
    value = _json(_run(*noise, *of_data))
    assert value["epsilon"] == epsilon([(RandomAllocation(4, 1.5, index, 3), 1) for index in range(2)], 1e-5)


def test_no_noise_is_infinite_not_private_and_valid_json() -> None:
    arguments = ("--noise-multiplier", "0", "--sampling-rate", "0.01", "--steps", "10", "--delta", "1e-5")
    value = _json(_run(*arguments, "--json"))
    assert (value["epsilon"], value["private"]) == ("inf", False)
    assert "NOT PRIVATE" in _run(*arguments).output


def test_a_ledger_is_read(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=Contract("observed", "operating system", population=100)) as ledger:
        ledger.charge(PoissonSampled(0.01, 1.1), count=1000)
    value = _json(_run("--ledger", str(path), "--delta", "1e-5", "--json"))
    assert value["epsilon"] == epsilon([(PoissonSampled(0.01, 1.1), 1000)], 1e-5)
    assert "N = 100 is declared public" in value["notes"]


def test_a_damaged_ledger_is_one_clean_line(tmp_path: Path) -> None:
    (tmp_path / "ledger").write_text("{}\n")
    result = _run("--ledger", str(tmp_path / "ledger"), "--delta", "1e-5")
    assert result.exit_code == 1
    assert result.stdout == ""
    assert result.stderr.startswith("Error: DP502 record 0 ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["--noise-multiplier", "-1", "--sampling-rate", "0.01", "--steps", "10", "--delta", "1e-5"], "DP101"),
        (["--noise-multiplier", "nan", "--sampling-rate", "0.01", "--steps", "10", "--delta", "1e-5"], "DP101"),
        (["--noise-multiplier", "1", "--sampling-rate", "1.01", "--steps", "10", "--delta", "1e-5"], "DP101"),
        (["--noise-multiplier", "1", "--sampling-rate", "0.01", "--steps", "0", "--delta", "1e-5"], "DP101"),
        (["--noise-multiplier", "1", "--sampling-rate", "0.01", "--steps", "10", "--delta", "0"], "DP101"),
        (["--noise-multiplier", "1", "--sampling-rate", "0.01", "--steps", "10", "--delta", "1e-9",
          "--accountant", "pld"], "DP501"),
        (["--noise-multiplier", "1", "--batch-size", "9", "--dataset-size", "8", "--epochs", "1", "--delta", "1e-5"],
         "DP101"),
    ],
)  # fmt: skip
def test_values_out_of_range_are_one_clean_line_and_exit_1(arguments: list[str], code: str) -> None:
    result = _run(*arguments)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: {code} ")
    assert "Traceback" not in result.output


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["--noise-multiplier", "1", "--delta", "1e-5"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--sampling-rate", "0.1"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--sampling-rate", "0.1", "--steps", "1", "--epochs", "1"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--sampling", "none", "--steps", "1"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--sampling", "none"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--passes", "3", "--sampling-rate", "0.1", "--steps", "1"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--batch-size", "3", "--dataset-size", "9"],
        ["--noise-multiplier", "one", "--delta", "1e-5", "--sampling-rate", "0.1", "--steps", "1"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--sampling", "balls-in-bins", "--bins", "3"],
        ["--noise-multiplier", "1", "--delta", "1e-5", "--sampling-rate", "0.1", "--steps", "1", "--bins", "3"],
        ["--ledger", "x", "--noise-multiplier", "1", "--delta", "1e-5"],
        ["--unknown"],
    ],
)
def test_wrong_usage_exits_2(arguments: list[str]) -> None:
    assert _run(*arguments).exit_code == 2


def test_version_and_help() -> None:
    runner = CliRunner()
    assert __version__ in runner.invoke(main, ["--version"]).output
    listed = runner.invoke(main, ["--help"]).output
    assert all(name in listed for name in ("calibrate", "demo", "epsilon", "train"))
    assert runner.invoke(main, ["unknown"]).exit_code == 2


def test_arguments_of_opacus_are_understood() -> None:
    value = _json(
        _run("--noise-multiplier", "1", "--sample-rate", "0.01", "--epochs", "3", "--delta", "1e-5", "--json")
    )
    assert (value["sampling_rate"], value["steps"]) == (0.01, 300)
    uneven = _json(
        _run("--noise-multiplier", "1", "--sample-rate", "0.3", "--epochs", "2", "--delta", "1e-5", "--json")
    )
    assert uneven["steps"] == 7  # 6.67, rounded up: never fewer than run


def test_a_cross_check_prints_all_accountants() -> None:
    value = _json(_run(*PLAN, "--json", "--cross-check"))
    assert value["epsilon"] == value["epsilon_by_saddle_point"]
    assert value["epsilon"] < value["epsilon_by_pld"] * 1.0001 < value["epsilon_by_rdp"]
    assert "epsilon by rdp" in _run(*PLAN, "--cross-check").output


def test_the_page_of_hand_written_noise_says_what_its_command_prints() -> None:
    page = (Path(__file__).parents[2] / "docs" / "hand-written-noise.md").read_text(encoding="utf-8")
    (line,) = re.findall(r"```bash\nhushgrad (.*)\n```", page)
    printed = json.loads(CliRunner().invoke(main, [*line.split(), "--json"]).output)
    assert f"({printed['steps']:,} steps" in page
    assert f"prints ε = {math.ceil(1000 * printed['epsilon']) / 1000}:" in page


GROUP = ["--noise-multiplier", "2", "--sampling-rate", "0.01", "--steps", "1000", "--delta", "1e-6"]


def test_a_group_of_records_costs_more_than_so_many_times_one() -> None:
    one, group = _json(_run(*GROUP, "--json")), _json(_run(*GROUP, "--group-size", "16", "--json"))
    assert (one["unit"], group["unit"], group["group_size"]) == ("one record", "any 16 records together", 16)
    assert "group_size" not in one
    assert 16 * one["epsilon"] < 11.6 < 16.6 < group["epsilon"]


def test_a_group_is_asked_of_a_ledger_and_not_of_other_accountants(tmp_path: Path) -> None:
    path = tmp_path / "ledger.jsonl"
    with Ledger(path, contract=Contract("observed", "operating system", unit="one user (told by id)")) as ledger:
        ledger.charge(PoissonSampled(0.01, 2.0))
    value = _json(_run("--ledger", str(path), "--delta", "1e-9", "--group-size", "2", "--json"))
    assert value["unit"] == "any 2 users together"
    assert "every user independently" in value["sentence"]
    assert _run(*GROUP, "--group-size", "2", "--cross-check").exit_code == 2
    assert _run(*GROUP, "--group-size", "2", "--accountant", "rdp").exit_code != 0
    assert _run(*GROUP, "--group-size", "0").exit_code != 0
