"""A run that may be killed at any moment and goes on: what was spent stays counted, and the end is reached.

Run `python examples/resume_after_kill.py`, stop it with Ctrl-C or `kill -9`, and run it again.
"""

from __future__ import annotations

import argparse
import os

import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

EPOCHS = 10


def main() -> None:
    """Train from where the folder says to the planned end."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="runs/resume")
    parser.add_argument("--stop-after", type=int, help="leave without a word after so many steps, as a crash would")
    given = parser.parse_args()
    os.makedirs(given.out, exist_ok=True)
    checkpoint = os.path.join(given.out, "checkpoint")
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.98)
    engine = PrivacyEngine(ledger=os.path.join(given.out, "ledger.jsonl"))
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x[:1_500], y[:1_500]), batch_size=250),
        target_epsilon=3.0,
        target_delta=1e-4,
        epochs=EPOCHS,
        max_grad_norm=1.0,
        spare_steps=20,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    done = 0
    if os.path.exists(checkpoint):
        resumed = engine.load_checkpoint(checkpoint, schedulers=[scheduler])
        done = resumed.extra["done"]
        print(f"going on after step {done}; {resumed.lost_steps} steps after it were lost and stay charged")
    planned = EPOCHS * len(loader)
    while done < planned:
        for pixels, labels in loader:
            optimizer.zero_grad()
            criterion(model(pixels), labels).backward()
            optimizer.step()
            scheduler.step()
            done += 1
            if done == given.stop_after:
                os._exit(1)
            if done % 5 == 0 or done == planned:
                engine.save_checkpoint(checkpoint, schedulers=[scheduler], extra={"done": done})
            if done == planned:
                break
    model.eval()
    right = (model(x[1_500:]).argmax(1) == y[1_500:]).float().mean()
    print(f"accuracy on held-out digits: {right:.1%}")
    print(engine.guarantee(delta=1e-4))


if __name__ == "__main__":
    main()
