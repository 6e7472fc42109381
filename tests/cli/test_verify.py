"""`hushgrad verify`: the demo, a function of the user's, exit status and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner

from hushgrad.cli.main import main

SETUP = """
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
import hushgrad

def claim(noise_multiplier):
    return hushgrad.DPSGD(noise_multiplier=noise_multiplier, clipping=hushgrad.FlatClipping(1.0),
                          sampling=hushgrad.PoissonSampling(0.1), expected_batch_size=20)

def setup():
    data = TensorDataset(torch.randn(200, 5), torch.randint(0, 3, (200,)))
    return nn.Linear(5, 3), DataLoader(data, batch_size=20), nn.CrossEntropyLoss(), claim(1.0)

def tampered():
    from hushgrad.clipping.flat import FlatClipping
    FlatClipping.factors = lambda self, norms: (3.0 / norms).clamp(max=1.0)
    return setup()

def incomplete():
    return nn.Linear(5, 3)
"""


@pytest.mark.statistical
def test_the_demo_is_verified_and_a_verdict_is_written(tmp_path: Path) -> None:
    """False-alarm probability 1e-6."""
    out = tmp_path / "run" / "verdict.json"
    result = CliRunner().invoke(main, ["verify", "--out", str(out), "--resolution", "0.02"])
    assert result.exit_code == 0, result.output
    assert "PASSED" in result.output
    assert "fail by chance" in result.output
    assert json.loads(out.read_text())["passed"] is True


@pytest.mark.statistical
def test_training_that_was_tampered_with_exits_with_1(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from hushgrad.clipping.flat import FlatClipping

    monkeypatch.setattr(FlatClipping, "factors", FlatClipping.factors)  # given back after the test
    (tmp_path / "setups.py").write_text(SETUP)
    reference = f"{tmp_path / 'setups.py'}:"
    right = CliRunner().invoke(main, ["verify", reference + "setup", "--json", "--resolution", "0.05"])
    assert right.exit_code == 0, right.output
    assert json.loads(right.stdout)["passed"] is True
    wrong = CliRunner().invoke(main, ["verify", reference + "tampered", "--resolution", "0.05"])
    assert wrong.exit_code == 1
    assert "FAILED" in wrong.output


def test_the_demos_own_training_is_what_is_measured_without_a_setup() -> None:
    from hushgrad import PrivacyEngine
    from hushgrad.cli.demo import private_training
    from hushgrad.cli.verify import _demo

    config = private_training()
    model, loader, _, mechanism = _demo()
    engine = PrivacyEngine()
    engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        target_epsilon=config.privacy.target_epsilon,
        target_delta=config.privacy.delta,
        epochs=config.epochs,
        max_grad_norm=config.privacy.max_grad_norm,
    )
    assert mechanism == engine.mechanism


def test_what_cannot_be_measured_or_written_is_refused_before_measuring(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "setups.py").write_text(SETUP)
    reference = f"{tmp_path / 'setups.py'}:setup"
    coarse = CliRunner().invoke(main, ["verify", reference, "--resolution", "5"])
    assert coarse.exit_code == 1
    assert "DP101 resolution: must be in (0, 1), got 5.0. Pass a relative error, such as 0.01" in coarse.output
    monkeypatch.setattr("hushgrad.cli.verify.measure", lambda *_, **__: pytest.fail("it was measured"))
    nowhere = CliRunner().invoke(main, ["verify", reference, "--out", str(tmp_path / "setups.py" / "verdict.json")])
    assert nowhere.exit_code == 1
    assert nowhere.output.startswith("Error: DP101 --out: ")


def test_a_setup_that_is_none_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "setups.py").write_text(SETUP)
    result = CliRunner().invoke(main, ["verify", f"{tmp_path / 'setups.py'}:incomplete"])
    assert result.exit_code == 1
    assert (
        "SETUP must return four values, got Linear. Return (model, data loader, loss, engine or mechanism)"
        in result.output
    )
