"""Models that make something in their first forward, and how they are trained."""

from __future__ import annotations

import weakref
from types import FunctionType, SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

WIDTH, CLASSES, BATCH = 6, 3, 8


class Body(nn.Module):
    """A small classifier; subclasses make something in their first forward."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(WIDTH, WIDTH), nn.Linear(WIDTH, CLASSES)
        self.box = SimpleNamespace()
        self.handle = self.head.register_forward_pre_hook(lambda module, args: (args[0] * 2,))

    def forward(self, x: Tensor) -> Tensor:
        self.prepare(x)
        return self.after(self.head(self.first(x).tanh()))

    def prepare(self, x: Tensor) -> None:
        """Before everything else."""

    def after(self, out: Tensor) -> Tensor:
        return out


READY: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def held(model: nn.Module) -> dict[str, Any]:
    """Return what every module has: parts, hooks in their order, and plain values."""
    found: dict[str, Any] = {}
    for name, module in model.named_modules():
        for key, value in vars(module).items():
            if isinstance(value, dict):
                found[f"{name}.{key}"] = [
                    part.__code__.co_code
                    if isinstance(part, FunctionType)
                    else type(part)
                    if "hook" in key
                    else str(entry)
                    for entry, part in value.items()
                ]
            elif isinstance(value, (bool, int, str, set, SimpleNamespace, type(None))):
                found[f"{name}.{key}"] = str(value)
    return found


def attached(model: nn.Module, data: TensorDataset, **options: Any) -> tuple[PrivacyEngine, Any, Any]:
    engine = PrivacyEngine(test_key=1)
    optimizer = torch.optim.SGD(model.parameters(), lr=options.pop("lr", 0.0))
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=BATCH),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
        **options,
    )
    return engine, optimizer, loader


def data(count: int = 2 * BATCH) -> TensorDataset:
    return TensorDataset(torch.randn(count, WIDTH), torch.arange(count) % CLASSES)


def train(model: nn.Module) -> PrivacyEngine:
    engine, optimizer, loader = attached(model, data())
    for x, y in loader:
        engine.per_example(nn.CrossEntropyLoss())(model(x), y).backward()
        optimizer.step()
    return engine
