import json

import pytest
from click.testing import CliRunner, Result

from hushgrad.accounting import PoissonSampled, epsilon
from hushgrad.accounting.risk import gaussian_mu, true_positive_rate
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


def _json(*arguments: str) -> dict:  # type: ignore[type-arg]
    result = _run(*arguments, "--json")
    assert result.exit_code == 0, result.output
    return json.loads(result.output)  # type: ignore[no-any-return]


def test_steps_are_found_to_the_last_one_that_fits() -> None:
    value = _json(
        "--epsilon", "3", "--delta", "1e-5", "--find", "steps", "--sampling-rate", "0.01", "--noise-multiplier", "1.1"
    )
    spent, beyond = (epsilon([(PoissonSampled(0.01, 1.1), value["steps"] + i)], 1e-5) for i in (0, 1))
    assert spent <= 3 < beyond


@pytest.mark.slow
def test_a_rate_is_found_for_a_target_mu() -> None:
    value = _json(
        "--mu", "0.5", "--delta", "1e-5", "--find", "sampling-rate", "--steps", "1000", "--noise-multiplier", "1.1"
    )
    plan = [(PoissonSampled(value["sampling_rate"], 1.1), 1000)]
    assert 0.499 < gaussian_mu(plan) <= 0.5


@pytest.mark.slow
def test_noise_is_found_for_an_attackers_power() -> None:
    value = _json(
        "--true-positive-rate", "0.05", "--false-positive-rate", "0.01", "--delta", "1e-5", "--sampling-rate", "0.01",
        "--steps", "500",
    )  # fmt: skip
    assert 0.0499 < true_positive_rate([(PoissonSampled(0.01, value["noise_multiplier"]), 500)], 0.01) <= 0.05


@pytest.mark.parametrize(
    "arguments",
    [
        ("--epsilon", "3", "--mu", "1", "--sampling-rate", "0.1", "--steps", "10"),
        ("--true-positive-rate", "0.1", "--sampling-rate", "0.1", "--steps", "10"),
        ("--epsilon", "3", "--find", "steps", "--sampling-rate", "0.1"),
        ("--epsilon", "3", "--find", "steps", "--noise-multiplier", "1"),
        ("--epsilon", "3", "--find", "steps", "--noise-multiplier", "1", "--sampling-rate", "0.1", "--steps", "5"),
        ("--epsilon", "3", "--find", "sampling-rate", "--noise-multiplier", "1"),
        ("--epsilon", "3", "--noise-multiplier", "1", "--sampling-rate", "0.1", "--steps", "10"),
    ],
)
def test_too_few_or_contradicting_options_exit_2(arguments: tuple[str, ...]) -> None:
    assert _run(*arguments, "--delta", "1e-5").exit_code == 2


def test_noise_is_chosen_for_a_group_of_records() -> None:
    plan = ["--epsilon", "4", "--delta", "1e-6", "--sampling-rate", "0.01", "--steps", "1000"]
    value = _json(*plan, "--group-size", "16")
    assert value["noise_multiplier"] == pytest.approx(6.14685, rel=3e-4)
    assert (value["unit"], value["group_size"]) == ("any 16 records together", 16)
    assert 3.99 < value["epsilon"] <= 4
    assert _run("--mu", "0.5", *plan[2:], "--group-size", "2").exit_code == 2
