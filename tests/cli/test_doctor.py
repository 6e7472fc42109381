"""`hushgrad doctor`: what it prints, and with which status it ends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hushgrad.cli.main import main

SOURCE = """
import torch
from torch import nn

print("imported")

def good():
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 3))

def bad():
    return nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Linear(8, 3), nn.BatchNorm1d(3))

def with_optimizer():
    model = good()
    return model, torch.optim.SGD(model[0].parameters(), lr=0.1)

def batch():
    return torch.randn(5, 6), torch.arange(5) % 3

def fails():
    raise RuntimeError("no such thing")

def secret():
    raise RuntimeError("record 4711")

def loss(output, target):
    return nn.functional.cross_entropy(output, target, reduction="none")

nothing = None
"""


@pytest.fixture
def models(tmp_path: Path) -> str:
    file = tmp_path / "my_models.py"
    file.write_text(SOURCE)
    return str(file)


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, ["doctor", *arguments])


def test_a_good_model_ends_with_0_and_a_table(models: str) -> None:
    result = run(f"{models}:good", "--batch", f"{models}:batch", "--criterion", "torch.nn:CrossEntropyLoss")
    assert result.exit_code == 0, result.output
    assert "0.weight, .bias" in result.stdout
    assert "Ready to be made private." in result.stdout
    assert f"running {models}" in result.stderr
    assert "imported" not in result.stdout


def test_a_bad_model_ends_with_1_and_all_its_problems(models: str) -> None:
    for arguments in ((f"{models}:bad",), (f"{models}:bad", "--batch", f"{models}:batch")):
        result = run(*arguments)
        assert result.exit_code == 1
        assert "{1,3}: BatchNorm1d" in result.stdout
        assert "make_private_ready" in result.stdout


def test_without_a_batch_it_says_that_nothing_was_run(models: str) -> None:
    result = run(f"{models}:good")
    assert result.exit_code == 0
    assert "not run" in result.stdout
    assert "Give a batch" in result.stdout


def test_json_is_the_only_thing_on_stdout(models: str) -> None:
    values = json.loads(run(f"{models}:bad", "--batch", f"{models}:batch", "--json").stdout)
    assert not values["ready"]
    assert {problem["where"] for problem in values["problems"]} == {"1", "3"}


def test_the_optimizer_is_looked_at_too(models: str) -> None:
    result = run(f"{models}:with_optimizer")
    assert result.exit_code == 1
    assert "not in the optimizer" in result.stdout


def test_an_own_loss_function_may_be_named(models: str) -> None:
    result = run(f"{models}:good", "--batch", f"{models}:batch", "--criterion", f"{models}:loss")
    assert result.exit_code == 0, result.output


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["{}:fails"], "raised RuntimeError in fails"),
        (["{}:missing"], "has no 'missing'"),
        (["{}:nothing"], "must give a torch.nn.Module"),
        (["{}"], "does not name an object. Write module:name"),
        (["no.such.module:x"], "there is no module"),
        (["{}x:good"], "there is no"),
        (["{}:good", "--batch", "{}:nothing"], "there is no batch, but None"),
        (["{}:good", "--criterion", "{}:loss"], "needs --batch"),
    ],
)
def test_a_mistake_is_one_clean_line(models: str, arguments: list[str], told: str) -> None:
    result = run(*[argument.format(models) for argument in arguments])
    assert result.exit_code not in (0, 1) or "DP101" in result.stderr
    assert told in " ".join(result.stderr.split())
    assert "Traceback" not in result.output


def test_the_text_of_an_error_in_code_that_reads_data_is_not_shown(models: str) -> None:
    result = run(f"{models}:good", "--batch", f"{models}:secret")
    assert result.exit_code != 0
    assert "4711" not in result.output


def test_a_file_that_is_no_python_is_said_to_be_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "README.md").write_text("# read me")
    result = CliRunner().invoke(main, ["doctor", "README.md:Net"])
    assert result.exit_code == 1
    assert "README.md is not a Python file. Name a file that ends in .py" in result.output
