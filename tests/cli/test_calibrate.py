import json

import pytest
from click.testing import CliRunner, Result

from hushgrad.accounting import PoissonSampled, epsilon
from hushgrad.cli.main import main


def _run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["calibrate", *arguments])


def test_json_has_a_noise_multiplier_that_keeps_within_the_target() -> None:
    result = _run("--epsilon", "3", "--delta", "1e-5", "--sampling-rate", "0.01", "--steps", "1000", "--json")
    assert result.exit_code == 0
    value = json.loads(result.output)
    spent = epsilon([(PoissonSampled(0.01, value["noise_multiplier"]), 1000)], 1e-5)
    assert value["epsilon"] == spent <= 3
    assert spent > 2.99


def test_the_noise_multiplier_in_text_is_rounded_up() -> None:
    result = _run("--epsilon", "8", "--delta", "1e-5", "--sampling", "none", "--passes", "3")
    assert result.exit_code == 0
    assert result.output.splitlines()[0].startswith("noise multiplier")
    shown = result.output.splitlines()[0].split()[-1]
    again = CliRunner().invoke(
        main,
        ["epsilon", "--noise-multiplier", shown, "--sampling", "none", "--passes", "3", "--delta", "1e-5", "--json"],
    )
    assert json.loads(again.output)["epsilon"] <= 8


@pytest.mark.parametrize("target", ["0", "-1", "nan", "inf"])
def test_a_target_that_is_not_positive_is_refused(target: str) -> None:
    result = _run("--epsilon", target, "--delta", "1e-5", "--sampling-rate", "0.01", "--steps", "10")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: DP101 target_epsilon")


def test_an_unreachable_target_says_so() -> None:
    result = _run(
        "--epsilon", "1e-9", "--delta", "1e-12", "--sampling-rate", "0.5", "--steps", "1000000", "--accountant", "rdp"
    )
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: DP103 ")


def test_wrong_usage_exits_2() -> None:
    assert _run("--epsilon", "3", "--delta", "1e-5").exit_code == 2
    assert _run("--delta", "1e-5", "--sampling-rate", "0.01", "--steps", "10").exit_code == 2
