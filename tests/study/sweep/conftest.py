"""An own training function that sweeps of the tests run in other processes."""

import textwrap

import pytest

FUNCTION = """
import os, time
from pathlib import Path
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset
from hushgrad import PrivacyEngine

def claims(trial):
    # Deterministic and quick: what it says depends on its settings alone.
    if trial.noise_multiplier is not None:
        _train(trial)
    if (Path("slow")).exists() and trial.seed == 1:
        (Path("reached")).touch()
        while (Path("slow")).exists():
            time.sleep(0.02)
    return {"test_accuracy": 0.9 - 0.01 * (trial.noise_multiplier or 0) - 0.001 * trial.seed}

def _train(trial, noise=None):
    model = nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=trial.learning_rate or 0.1)
    data = TensorDataset(torch.randn(32, 4), torch.arange(32) % 2)
    engine = PrivacyEngine(ledger=trial.ledger)
    model, optimizer, loader = engine.make_private(module=model, optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=8), noise_multiplier=noise or trial.noise_multiplier, max_grad_norm=1.0)
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for x, y in loader:
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()
    engine.session.close()

def crashes_at_two(trial):
    if trial.noise_multiplier == 2:
        _train(trial)
        raise RuntimeError("a value of the data: 42")
    return claims(trial)

def forgets_the_ledger(trial):
    return {"test_accuracy": 1.0}

def other_noise(trial):
    if trial.noise_multiplier is not None:
        _train(trial, noise=9.0)
    return {"test_accuracy": 1.0}

def dies(trial):
    os._exit(11)
"""


@pytest.fixture
def own(tmp_path, monkeypatch):
    """Change to a folder where `own:NAME` can be imported by this process and by workers."""
    (tmp_path / "own.py").write_text(textwrap.dedent(FUNCTION))
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    return tmp_path
