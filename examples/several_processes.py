"""One model, several processes: the loop of one process, with another launch line.

    torchrun --standalone --nproc-per-node 2 examples/several_processes.py

`python examples/several_processes.py` runs the same training in one process, with the same ε.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

EPOCHS = 8


def main() -> None:
    """Train in as many processes as torchrun has started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="runs/several")
    given = parser.parse_args()
    os.makedirs(given.out, exist_ok=True)
    several = "RANK" in os.environ
    if several:
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    digits = load_digits()
    x, y = torch.tensor(digits.data, dtype=torch.float32) / 16, torch.tensor(digits.target)

    torch.manual_seed(0)  # the same weights everywhere; noise and draws do not follow it
    model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    engine = PrivacyEngine(ledger=os.path.join(given.out, "ledger.jsonl"))  # written by the process of rank 0
    wrapped, optimizer, loader = engine.make_private_with_epsilon(
        module=DistributedDataParallel(model) if several else model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x[:1_500], y[:1_500]), batch_size=250),  # of all processes together
        target_epsilon=3.0,
        target_delta=1e-4,
        epochs=EPOCHS,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(EPOCHS):
        for inputs, labels in loader:
            optimizer.zero_grad()
            criterion(wrapped(inputs), labels).backward()
            optimizer.step()
    engine.save_checkpoint(os.path.join(given.out, "checkpoint"))
    guarantee = engine.guarantee(delta=1e-4)
    if not several or dist.get_rank() == 0:
        right = (model(x[1_500:]).argmax(1) == y[1_500:]).float().mean().item()
        print(f"{right:.1%} of the test images")
        print(guarantee)
    if several:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
