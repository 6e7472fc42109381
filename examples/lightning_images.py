"""A Lightning image classifier, trained privately: digits from scikit-learn, a small convolutional network.

Run `python examples/lightning_images.py`. After a stop run it again with `--resume`: it goes on from its checkpoint.
"""

from __future__ import annotations

import argparse
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import Privacy
from hushgrad.integrations.lightning import PrivateTraining


class Classifier(L.LightningModule):
    """Ten classes of images of 8 by 8 pixels."""

    def __init__(self, privacy: PrivateTraining) -> None:
        super().__init__()
        self.privacy = privacy
        self.net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.GroupNorm(4, 16), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(16, 32, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(512, 10),
        )  # fmt: skip

    def training_step(self, batch: Any) -> Tensor:
        """Return what Lightning runs backward: made of one loss per image."""
        images, labels = batch
        return self.privacy.loss(F.cross_entropy(self.net(images), labels, reduction="none"))

    def validation_step(self, batch: Any) -> None:
        """Log how many held-out images are told right."""
        images, labels = batch
        self.log("accuracy", (self.net(images).argmax(1) == labels).float().mean())

    def configure_optimizers(self) -> Any:
        """Return the optimizer and a schedule over logical steps."""
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        steps = int(self.trainer.estimated_stepping_batches)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}


def main() -> None:
    """Train, test, and print the guarantee."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--epochs", type=int, default=10)
    parser.add_argument("--out", default="runs/lightning_images")
    parser.add_argument("--resume", action="store_true", help="go on from the last checkpoint")
    given = parser.parse_args()
    digits = load_digits()
    x, y = torch.tensor(digits.images, dtype=torch.float32)[:, None] / 16, torch.tensor(digits.target)

    privacy = PrivateTraining(
        Privacy(max_grad_norm=1.0, target_epsilon=3.0, target_delta=1e-4), max_physical_batch_size=64
    )
    trainer = L.Trainer(
        max_epochs=given.epochs,
        default_root_dir=given.out,
        callbacks=[privacy, ModelCheckpoint(given.out, save_last=True)],
        logger=False,
        enable_progress_bar=False,
    )
    trainer.fit(
        Classifier(privacy),
        privacy.batches(DataLoader(TensorDataset(x[:1_500], y[:1_500]), batch_size=250, shuffle=True)),
        DataLoader(TensorDataset(x[1_500:], y[1_500:]), batch_size=297),
        ckpt_path="last" if given.resume else None,
    )
    print(f"accuracy on held-out digits: {trainer.callback_metrics['accuracy']:.1%}")
    print(privacy.guarantee())


if __name__ == "__main__":
    main()
