"""A loop of Accelerate, made private: digits from scikit-learn, a small network.

Run `python examples/accelerate_loop.py`, or `accelerate launch examples/accelerate_loop.py`.
"""

from __future__ import annotations

import argparse

import torch
from accelerate import Accelerator
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import Privacy
from hushgrad.integrations.accelerate import prepare


def main() -> None:
    """Train, test, and print the guarantee."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--ledger", help="a file that keeps what was spent, also over restarts")
    given = parser.parse_args()
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)
    train, test = TensorDataset(x[:1_500], y[:1_500]), (x[1_500:], y[1_500:])

    accelerator = Accelerator()
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    model, optimizer, batches, session = prepare(
        accelerator,
        model,
        optimizer,
        DataLoader(train, batch_size=250),
        privacy=Privacy(max_grad_norm=1.0, target_epsilon=3.0, target_delta=1e-4, ledger=given.ledger),
        epochs=given.epochs,
        max_physical_batch_size=64,
    )
    criterion = nn.CrossEntropyLoss(reduction="none")
    for _ in range(given.epochs):
        for batch in batches:  # a logical batch
            for pixels, labels in batch:  # what fits into memory of it
                with accelerator.autocast():
                    losses = criterion(model(pixels), labels)
                session.backward(losses)
                session.end_item()
            optimizer.step()
            scheduler.step()
    model.eval()
    with torch.no_grad():
        right = (model(test[0].to(accelerator.device)).argmax(1).cpu() == test[1]).float().mean()
    print(f"accuracy on held-out digits: {right:.1%}")
    print(session.guarantee(delta=1e-4))


if __name__ == "__main__":
    main()
