import json
import os

import pytest
from click.testing import CliRunner

from hushgrad.cli.main import main


def test_the_demo_compares_a_private_run_with_an_ordinary_one(tmp_path):
    result = CliRunner().invoke(main, ["demo", "--epochs", "2", "--out", str(tmp_path / "out")])
    assert result.exit_code == 0, result.output
    private, ordinary = (
        json.loads((tmp_path / "out" / name / "summary.json").read_text()) for name in ("private", "ordinary")
    )
    assert 2.8 < private["epsilon"] <= 3.0
    assert ordinary["epsilon"] == "inf"
    settings = ("task", "model", "batch_size", "epochs", "learning_rate", "seed", "steps")
    assert [private.get(name) for name in settings] == [ordinary.get(name) for name in settings]
    end = result.output[result.output.index("Side by side") :]
    for shown in (
        "private",
        "ordinary",
        "NOT PRIVATE",
        f"{private['test_accuracy']:.1%}",
        "curves.png",
        "hushgrad train",
        f"report {tmp_path / 'out' / 'private'}",
    ):
        assert shown in end
    both = CliRunner().invoke(main, ["report", str(tmp_path / "out")])
    assert both.exit_code == 1
    assert "the folder holds no run. Choose one of the folders of runs in it: ordinary, private" in both.output


def test_the_demo_never_overwrites_an_earlier_one(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        result = CliRunner().invoke(main, ["demo", "--epochs", "1"])
        assert result.exit_code == 0, result.output
    assert sorted(os.listdir(tmp_path)) == ["hushgrad-demo", "hushgrad-demo-2"]


@pytest.mark.parametrize("epochs", ["0", "-1"])
def test_bad_epochs_are_refused_before_anything_is_written(tmp_path, epochs):
    result = CliRunner().invoke(main, ["demo", "--epochs", epochs, "--out", str(tmp_path / "out")])
    assert result.exit_code == 1
    assert "DP101 epochs: must be >= 1" in result.output
    assert not (tmp_path / "out").exists()
