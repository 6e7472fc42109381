"""The sampled check of clipped contributions: silent in correct training, and ends training where clipping is wrong."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import hushgrad
from hushgrad.accounting import read_ledger
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import SensitivityMismatchError
from hushgrad.guards.monitoring.sensitivity import SensitivityMonitor
from hushgrad.mechanism import DPSGD


def train(count: int, path: Path, scale: float = 10.0) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 6), nn.Flatten(), nn.Linear(24, 8), nn.Tanh(), nn.LayerNorm(8))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(0.3),
        sampling=hushgrad.PoissonSampling(0.1),
        expected_batch_size=16,
    )
    session = hushgrad.privatize(model, optimizer, mechanism, ledger=path)
    try:
        for _ in range(count):
            session.backward(scale * (model(torch.randint(9, (16, 4))) - 1).square().sum(1))
            optimizer.step()
    finally:
        session.close()


@pytest.mark.parametrize("scale", [1e-3, 10.0, 1e6])
def test_correct_training_raises_no_alarm_and_the_ledger_says_so(tmp_path: Path, scale: float) -> None:
    train(102, tmp_path / "ledger.jsonl", scale)
    note = read_ledger(tmp_path / "ledger.jsonl").notes[-1]
    assert (note.about, note.steps) == ("sensitivity monitor", 102)
    assert note.values == {"steps_sampled": 2, "verdict": "within the clip norm"}


def test_the_first_and_every_hundredth_update_is_looked_at() -> None:
    assert [number for number in range(301) if SensitivityMonitor.is_due(number)] == [0, 100, 200, 300]


@pytest.mark.parametrize("factor", [1.01, 2.0])
def test_an_example_above_the_clip_norm_ends_training(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, factor: float
) -> None:
    """Guarantee: of every hundredth update one example is checked, and one that adds more than the clip norm ends
    training with an error.
    """
    right = FlatClipping.factors

    def too_large(self: FlatClipping, norms_B: Tensor) -> Tensor:
        return factor * right(self, norms_B)

    monkeypatch.setattr(FlatClipping, "factors", too_large)
    with pytest.raises(SensitivityMismatchError, match="more than the clip norm"):
        train(1, tmp_path / "ledger.jsonl")
    view = read_ledger(tmp_path / "ledger.jsonl")
    assert view.steps == 0
    assert view.notes[-1].values["verdict"] == "above the clip norm"
