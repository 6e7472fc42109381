"""A run that began with Opacus goes on here, with one epsilon over both parts.

Run `python examples/continue_from_opacus.py --out runs/opacus`. Opacus itself makes the checkpoint, where it is
installed (`pip install opacus`); `--checkpoint FILE` takes one of yours for the model below.
"""

from __future__ import annotations

import argparse
import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.migration.opacus import read_checkpoint

DELTA, BATCH_SIZE = 1e-4, 250


def make_model() -> nn.Module:
    """Return the model that both parts train."""
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


def begin_with_opacus(data: TensorDataset, path: str) -> None:
    """Train for two passes with Opacus, and write its checkpoint."""
    import opacus

    model = make_model()
    engine = opacus.PrivacyEngine()
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.Adam(model.parameters(), lr=0.01),
        data_loader=DataLoader(data, batch_size=BATCH_SIZE),
        noise_multiplier=2.0,
        max_grad_norm=1.0,
    )
    for _ in range(2):
        for pixels, labels in loader:
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(pixels), labels).backward()
            optimizer.step()
    engine.save_checkpoint(path=path, module=model, optimizer=optimizer)
    print(f"Opacus says epsilon = {engine.get_epsilon(DELTA):.3f}")


def main() -> None:
    """Read the checkpoint, write its steps into a ledger, and train on."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="runs/opacus")
    parser.add_argument("--checkpoint", help="a file of Opacus' save_checkpoint")
    given = parser.parse_args()
    os.makedirs(given.out, exist_ok=True)
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    data = TensorDataset(x[:1_500], y[:1_500])
    checkpoint = given.checkpoint or os.path.join(given.out, "opacus.pt")
    if given.checkpoint is None:
        begin_with_opacus(data, checkpoint)

    found = read_checkpoint(
        checkpoint,
        poisson_sampling=True,  # the file does not say these
        batch_size=BATCH_SIZE,
        population=len(data),
        max_grad_norm=1.0,
        clipping="flat",
    )
    print(f"here it is {found.epsilon(DELTA):.3f}: {found.explanation()}")
    model = make_model()
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    model.load_state_dict(found.weights_for(model))
    optimizer.load_state_dict(found.optimizer_for(model))
    ledger = os.path.join(given.out, "ledger.jsonl")
    found.write_ledger(ledger)

    engine = PrivacyEngine(ledger=ledger)
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=BATCH_SIZE),
        target_epsilon=4.0,  # of both parts together
        target_delta=DELTA,
        epochs=5,
        max_grad_norm=1.0,
        phase="after Opacus",
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(5):
        for pixels, labels in loader:
            optimizer.zero_grad()
            criterion(model(pixels), labels).backward()
            optimizer.step()
    model.eval()
    right = (model(x[1_500:]).argmax(1) == y[1_500:]).float().mean()
    print(f"accuracy on held-out digits: {right:.1%}")
    print(engine.guarantee(delta=DELTA))


if __name__ == "__main__":
    main()
