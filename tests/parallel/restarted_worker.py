"""Training that torchrun starts again: in the first attempt the process of rank 1 dies in the fifth step."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

STEPS = 6


def main() -> None:
    folder, attempt = Path(sys.argv[1]), int(os.environ["TORCHELASTIC_RESTART_COUNT"])
    torch.manual_seed(0)
    x, y = torch.randn(60, 8), torch.randint(3, (60,))
    dist.init_process_group("gloo")
    model = DistributedDataParallel(nn.Linear(8, 3))
    engine = PrivacyEngine(ledger=folder / "ledger")
    _, optimizer, loader = engine.make_private(
        module=model, optimizer=torch.optim.Adam(model.parameters()), data_loader=DataLoader(TensorDataset(x, y), 10),
        noise_multiplier=1.0, max_grad_norm=1.0,
    )  # fmt: skip
    checkpoint, taken, lost = folder / "checkpoint", 0, -1
    if checkpoint.exists():
        resumed = engine.load_checkpoint(checkpoint)
        taken, lost = resumed.extra["taken"], resumed.lost_steps
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for inputs, labels in loader:
        if taken == STEPS:
            break
        if attempt == 0 and taken == 4 and dist.get_rank() == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        optimizer.zero_grad()
        criterion(model(inputs), labels).backward()
        optimizer.step()
        taken += 1
        if taken == 2:
            engine.save_checkpoint(checkpoint, extra={"taken": taken})
    told = {
        "attempt": attempt, "lost": lost, "taken": taken, "steps": engine.session.steps,
        "epsilon": engine.get_epsilon(1e-5),
    }  # fmt: skip
    (folder / f"told.{dist.get_rank()}").write_text(json.dumps(told))
    engine.session.close()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
