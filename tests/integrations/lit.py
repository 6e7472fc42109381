"""A Lightning module over the tiny models, and one way to fit it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from tiny import B, C, N, Steps, Texts, collate
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import Privacy
from hushgrad.integrations.lightning import PrivateTraining
from hushgrad.integrations.model_losses import of_examples

SILENT = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=0.0, test_key=1)
NOISY = Privacy(max_grad_norm=C, target_delta=1e-3, noise_multiplier=1.5, test_key=1)
EPOCHS = 2
STEPS = EPOCHS * N // B


def watched(kind: type[Any]) -> type[Any]:
    """Return an optimizer class that shows the released update: after the closure, before its own step."""

    class Watched(kind):  # type: ignore[misc]
        on_update: Any = None

        def step(self, closure: Any = None) -> Any:
            loss = closure()
            self.on_update()
            super().step()
            return loss

    return Watched


class Lit(L.LightningModule):
    """A model of texts; its records and updates are watched."""

    def __init__(
        self, model: nn.Module, privacy: PrivateTraining, kind: type[Any] = torch.optim.SGD, **settings: Any
    ) -> None:
        super().__init__()
        self.model, self.privacy = model, privacy
        self.steps = Steps(model)
        self.kind, self.settings = kind, {"lr": 0.1, **settings}
        self.items = 0

    def losses(self, batch: dict[str, Tensor]) -> Tensor:
        return of_examples(self.model, self.model, dict(batch), None)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int) -> Any:
        assert self.privacy.session is not None
        self.items += 1
        self.steps.records += self.privacy.session.current_batch.indices  # type: ignore[union-attr]
        return self.privacy.loss(self.losses(batch))

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int) -> None:
        self.log("val_loss", self.privacy.loss(self.losses(batch)), batch_size=B)

    def configure_optimizers(self) -> Any:
        optimizer = watched(self.kind)([p for p in self.parameters() if p.requires_grad], **self.settings)
        optimizer.on_update = self.steps._step
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def loader(classes: int | None = None, **settings: Any) -> DataLoader[Any]:
    return DataLoader(Texts(classes), batch_size=B, collate_fn=collate, **settings)


def trainer(root: Path, privacy: PrivateTraining, **settings: Any) -> L.Trainer:
    arguments: dict[str, Any] = {
        "default_root_dir": root,
        "accelerator": "cpu",
        "max_epochs": EPOCHS,
        "logger": False,
        "enable_checkpointing": any(isinstance(one, ModelCheckpoint) for one in settings.get("callbacks", [])),
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "callbacks": [],
        **settings,
    }
    return L.Trainer(**{**arguments, "callbacks": [privacy, *arguments["callbacks"]]})


def fit(
    root: Path,
    model: nn.Module,
    classes: int | None,
    privacy: Privacy,
    *,
    kind: type[Any] = torch.optim.SGD,
    workers: int = 0,
    fused: bool = False,
    checkpointing: bool = False,
    **settings: Any,
) -> tuple[Lit, L.Trainer, PrivateTraining]:
    """Fit in items of at most 4 records, and return what was made."""
    if checkpointing:
        model.gradient_checkpointing_enable({"use_reentrant": False})  # type: ignore[operator]
    callback = PrivateTraining(privacy, max_physical_batch_size=4)
    module = Lit(model, callback, kind, **({"fused": True} if fused else {}))
    run = trainer(root, callback, **settings)
    run.fit(module, callback.batches(loader(classes, num_workers=workers)))
    return module, run, callback


class Small(L.LightningModule):
    """Three classes of rows, by a network of a moment."""

    def __init__(self, privacy: PrivateTraining) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(5, 8), nn.Tanh(), nn.Linear(8, 3))
        self.privacy = privacy
        self.rates: list[float] = []

    def losses(self, batch: Any) -> Tensor:
        x, y = batch
        return nn.functional.cross_entropy(self.net(x), y, reduction="none")

    def training_step(self, batch: Any) -> Any:
        self.rates.append(self.trainer.optimizers[0].param_groups[0]["lr"])
        return {"loss": self.privacy.loss(self.losses(batch))}

    def validation_step(self, batch: Any) -> None:
        self.log("val_loss", self.privacy.loss(self.losses(batch)))

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (1 + step))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Rows(L.LightningDataModule):
    """The rows of `small_loader`, and what a data module may do to a batch."""

    def setup(self, stage: str) -> None:
        self.rows = small_loader().dataset

    def train_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=B, shuffle=True)

    def val_dataloader(self) -> Any:
        return DataLoader(self.rows, batch_size=B)

    def on_before_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
        return [2 * batch[0], batch[1]]


def small_loader() -> DataLoader[Any]:
    chance = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(N, 5, generator=chance), torch.randint(0, 3, (N,), generator=chance))
    return DataLoader(rows, batch_size=B, shuffle=True)


class StopAt(L.Callback):
    """Ends the process's training in the middle of it, as a crash would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            raise CrashError


class CrashError(Exception):
    """Nobody catches it."""


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in module.state_dict().items()}


def is_as(module: nn.Module, before: dict[str, Tensor]) -> bool:
    return all(torch.equal(value, before[name]) for name, value in module.state_dict().items())


def fit_small(
    root: Path,
    privacy: Privacy = NOISY,
    kind: type[Small] = Small,
    ckpt_path: Any = None,
    **settings: Any,
) -> tuple[Small, L.Trainer, PrivateTraining]:
    callback = PrivateTraining(privacy, max_physical_batch_size=4, may_log=settings.pop("may_log", ()))
    module, run = kind(callback), trainer(root, callback, **settings)
    run.fit(module, callback.batches(small_loader()), small_loader(), ckpt_path=ckpt_path)
    return module, run, callback
