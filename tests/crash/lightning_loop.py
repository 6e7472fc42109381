"""Kills a process that trains in Lightning with SIGKILL at a named point, and lets another go on from its checkpoint.

Run as a program: `lightning_loop.py FOLDER POINT:STEP ...`; prints a JSON list with one object for each pair. One
process imports Lightning and forks for each, as `resume_loop.py` does for one.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from resume_loop import EVERY, POINTS, SPARE, STEPS, Fuse, Witnessed, kill_pairs
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import Privacy
from hushgrad.integrations.lightning import PrivateTraining

OF_LIGHTNING: dict[str, Callable[[Fuse], None]] = {
    "before the checkpoint is written": lambda fuse: fuse.before(L.Trainer, "save_checkpoint"),
    "after the checkpoint": lambda fuse: fuse.after(L.Trainer, "save_checkpoint"),
    "after the batch": lambda fuse: fuse.after(PrivateTraining, "on_train_batch_end"),
}


class Module(L.LightningModule):
    """A small network; the step that dies lights the fuse."""

    def __init__(self, privacy: PrivateTraining, fuse: Fuse, witness: int, dies_in: int | None) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))
        self.privacy, self.fuse, self.witness, self.dies_in = privacy, fuse, witness, dies_in

    def training_step(self, batch: Any) -> Any:
        x, y = batch
        self.fuse.is_lit = self.trainer.global_step == self.dies_in
        return self.privacy.loss((self.net(x) - y).square().mean(1))

    def configure_optimizers(self) -> Any:
        optimizer = Witnessed(self.parameters(), lr=0.01)
        optimizer.witness = self.witness
        return optimizer


def train(folder: Path, dies_in: int | None, point: str | None) -> None:
    """Train from where the folder says to the planned end, or to the point of step `dies_in`."""
    fuse = Fuse()
    if point is not None:
        {**POINTS, **OF_LIGHTNING}[point](fuse)
    torch.manual_seed(0)
    data = TensorDataset(torch.randn(24, 3), torch.randn(24, 1))
    checkpoint, ledger = folder / "last.ckpt", folder / "ledger.jsonl"
    said = Privacy(max_grad_norm=1.0, target_epsilon=5.0, target_delta=1e-3, spare_steps=SPARE, ledger=ledger)
    privacy = PrivateTraining(said, max_physical_batch_size=4, may_restart=True)
    witness = os.open(folder / "witness", os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
    saving = ModelCheckpoint(
        folder, filename="at", every_n_train_steps=EVERY, save_last=True, save_on_train_epoch_end=False
    )
    trainer = L.Trainer(
        max_epochs=STEPS // 3, default_root_dir=folder, accelerator="cpu", callbacks=[privacy, saving], logger=False,
        enable_progress_bar=False, enable_model_summary=False,
    )  # fmt: skip
    batches = privacy.batches(DataLoader(data, batch_size=8))
    module = Module(privacy, fuse, witness, dies_in)
    trainer.fit(module, batches, ckpt_path=checkpoint if checkpoint.exists() else None)
    assert privacy.session is not None
    privacy.session.close()
    told = {"done": trainer.global_step, "lost": privacy.lost_steps, "charged": privacy.session.steps}
    (folder / "end").write_text(json.dumps(told))


if __name__ == "__main__":
    kill_pairs(train, Path(sys.argv[1]), sys.argv[2:])
