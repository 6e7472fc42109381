"""A model that no process holds whole (FSDP2): shard it, then make it private; the loop stays.

torchrun --standalone --nproc-per-node 2 examples/sharded_model.py
"""

from __future__ import annotations

import argparse
import os

import torch
import torch.distributed as dist
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

EPOCHS = 6


class Rows(nn.Module):
    """A transformer over the eight rows of an image."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Linear(8, 32)
        self.place = nn.Parameter(torch.zeros(8, 32))
        self.blocks = nn.ModuleList(
            nn.TransformerEncoderLayer(32, 4, 64, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.head = nn.Linear(32, 10)

    def forward(self, images: Tensor) -> Tensor:
        """Return logits `[B, 10]` of images `[B, 8, 8]`."""
        x = self.embedding(images) + self.place
        for block in self.blocks:
            x = block(x)
        return self.head(x.mean(1))


def main() -> None:
    """Train in as many processes as torchrun has started."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", default="runs/sharded")
    given = parser.parse_args()
    os.makedirs(given.out, exist_ok=True)
    dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32) / 16, torch.tensor(digits.target)

    torch.manual_seed(0)  # every process cuts its part out of the same weights
    model = Rows()
    for block in model.blocks:
        fully_shard(block)
    fully_shard(model)
    optimizer = torch.optim.Adam(model.parameters(), lr=0.005)  # after fully_shard, as always with FSDP2
    engine = PrivacyEngine(ledger=os.path.join(given.out, "ledger.jsonl"))  # written by the process of rank 0
    model, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(TensorDataset(x[:1_500], y[:1_500]), batch_size=250),  # of all processes together
        target_epsilon=3.0,
        target_delta=1e-4,
        epochs=EPOCHS,
        max_grad_norm=1.0,
        max_physical_batch_size=64,  # of one process
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(EPOCHS):
        for images, labels in loader:
            optimizer.zero_grad()
            criterion(model(images), labels).backward()
            optimizer.step()
    engine.save_checkpoint(os.path.join(given.out, "checkpoint"))  # whole tensors, for any number of processes
    guarantee = engine.guarantee(delta=1e-4)
    with torch.no_grad():
        right = (model(x[1_500:]).argmax(1) == y[1_500:]).float().mean().item()
    if dist.get_rank() == 0:
        print(f"{right:.1%} of the test images")
        print(guarantee)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
