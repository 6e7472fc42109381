"""A small convolutional network for images, trained privately in a plain loop of PyTorch.

Run `python examples/images.py`. The images are scikit-learn's digits, 8 by 8 pixels; nothing is downloaded.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

HELD_OUT = 297


def network() -> nn.Module:
    """Return a network whose normalisation stays within an image (BatchNorm would mix images, and is refused)."""
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.Tanh(), nn.MaxPool2d(2),
        nn.Conv2d(16, 32, 3, padding=1), nn.Tanh(), nn.Flatten(), nn.Linear(512, 10),
    )  # fmt: skip


def share_right(model: nn.Module, images: Tensor, labels: Tensor) -> float:
    """Return which share of held-out images is told right."""
    with torch.no_grad():
        return float((model(images).argmax(1) == labels).float().mean())


def main() -> None:
    """Train, test, save, and print the guarantee."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=30)
    parser.add_argument("--epsilon", type=float, default=3.0)
    parser.add_argument("--out", type=Path, default=Path("runs/images"))
    given = parser.parse_args()
    given.out.mkdir(parents=True, exist_ok=True)
    digits = load_digits()
    # 16 is the largest pixel by the data set's own documentation. A maximum read off the images would tell of them.
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)
    train, test = TensorDataset(x[:-HELD_OUT], y[:-HELD_OUT]), (x[-HELD_OUT:], y[-HELD_OUT:])

    model = network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    engine = PrivacyEngine(ledger=given.out / "ledger.jsonl")
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(train, batch_size=250),
        target_epsilon=given.epsilon,
        target_delta=1e-4,
        epochs=given.epochs,
        max_grad_norm=1.0,
        max_physical_batch_size=128,  # the most images in memory at once; changes nothing else
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for epoch in range(1, given.epochs + 1):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
        if epoch % 5 == 0:
            print(f"epoch {epoch}: {share_right(model, *test):.1%}, ε = {engine.get_epsilon(delta=1e-4):.2f}")
    print(f"accuracy on held-out digits: {share_right(model, *test):.1%}")
    torch.save(model.state_dict(), given.out / "model.pt")
    print(engine.guarantee(delta=1e-4))


if __name__ == "__main__":
    main()
