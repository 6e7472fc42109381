"""Kills a process that trains in a loop of Accelerate with SIGKILL at a named point, and lets another go on.

Run as a program: `accelerate_loop.py FOLDER POINT:STEP ...`; prints a JSON list with one object for each pair. One
process imports Accelerate and forks for each, as `resume_loop.py` does for one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from resume_loop import EVERY, POINTS, SPARE, STEPS, Fuse, Witnessed, kill_pairs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import Privacy
from hushgrad.integrations.accelerate import prepare

OF_ACCELERATE: dict[str, Callable[[Fuse], None]] = {
    "before the checkpoint is written": lambda fuse: fuse.before(Accelerator, "save_state"),
    "after the checkpoint": lambda fuse: fuse.after(Accelerator, "save_state"),
}


def train(folder: Path, dies_in: int | None, point: str | None) -> None:
    """Train from where the folder says to the planned end, or to the point of step `dies_in`."""
    fuse = Fuse()
    if point is not None:
        {**POINTS, **OF_ACCELERATE}[point](fuse)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 3), torch.randn(24, 1))
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
    own = Witnessed(model.parameters(), lr=0.01)
    own.witness = os.open(folder / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    said = Privacy(
        max_grad_norm=1.0, target_epsilon=5.0, target_delta=1e-3, spare_steps=SPARE, ledger=folder / "ledger.jsonl"
    )
    accelerator = Accelerator(cpu=True)
    prepared, optimizer, batches, session = prepare(
        accelerator, model, own, DataLoader(data, batch_size=8), privacy=said, epochs=STEPS // 3,
        max_physical_batch_size=4,
    )  # fmt: skip
    lost = session.steps  # without a state all that was charged before is lost
    latest = folder / "latest"
    if latest.exists():
        accelerator.load_state(str(folder / latest.read_text()))
        lost = session.lost_steps
    done = session.steps - lost
    while done < STEPS:
        for batch in batches:
            for x, y in batch:
                fuse.is_lit = done == dies_in
                session.backward((prepared(x) - y).square().mean(1))
                session.end_item()
            optimizer.step()
            done += 1
            if done % EVERY == 0:  # into a folder of its own, whose name takes its place at once
                accelerator.save_state(str(folder / f"state-{done}-{session.steps}"))
                (folder / "next").write_text(f"state-{done}-{session.steps}")
                os.replace(folder / "next", latest)
            if done == STEPS:
                break
    session.close()
    (folder / "end").write_text(json.dumps({"done": done, "lost": lost, "charged": session.steps}))


if __name__ == "__main__":
    kill_pairs(train, Path(sys.argv[1]), sys.argv[2:])
