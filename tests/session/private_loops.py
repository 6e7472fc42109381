"""Private loops that several tests of this folder run, and others' through it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize


class Training:
    """A private loop over 24 records in disjoint batches of 8, items of 3, 3 and 2 records; no noise, no clipping."""

    def __init__(
        self,
        *,
        model: nn.Module | None = None,
        optimizer: Callable[[Any], Any] = lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        physical: int | None = 3,
        noise_multiplier: float = 0.0,
        batch_size: int = 8,
    ) -> None:
        self.model = model or nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
        self.optimizer = optimizer([p for p in self.model.parameters() if p.requires_grad])
        self.engine = PrivacyEngine()
        _, _, self.loader = self.engine.make_private(
            module=self.model,
            optimizer=self.optimizer,
            data_loader=DataLoader(TensorDataset(torch.randn(24, 3), torch.randn(24, 2)), batch_size=batch_size),
            noise_multiplier=noise_multiplier,
            max_grad_norm=1e6,
            poisson_sampling=False,
            max_physical_batch_size=physical,
        )
        self.session = self.engine.session

    def loss(self, item: Any) -> Tensor:
        return nn.functional.mse_loss(self.model(item[0]), item[1])

    def work(self, item: Any) -> None:
        self.loss(item).backward()
        self.optimizer.step()

    def run(self, body: Callable[[Any], None]) -> None:
        for item in self.loader:
            body(item)

    def run_rest(self, items: Iterator[Any]) -> None:
        for item in items:
            self.work(item)

    def values(self) -> list[Tensor]:
        return [parameter.detach().clone() for parameter in self.model.parameters()]

    def gradients(self) -> list[Tensor | None]:
        return [parameter.grad for parameter in self.model.parameters()]

    def is_as(self, values: list[Tensor]) -> bool:
        return all(torch.equal(own, value) for own, value in zip(self.values(), values, strict=True))


NO_NOISE = DPSGD(noise_multiplier=0, clipping=FlatClipping(1e6), sampling=PoissonSampling(0.5), expected_batch_size=8)
NOISY = replace(NO_NOISE, noise_multiplier=1.0, clipping=FlatClipping(1.0))


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def attach(
    mechanism: DPSGD = NO_NOISE, model: nn.Module | None = None, **options: Any
) -> tuple[nn.Module, Any, Session]:
    model = model or network()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, privatize(model, optimizer, mechanism, **options)


def losses(model: nn.Module, x: Tensor) -> Tensor:
    return model(x).square().sum(1)


def values(model: nn.Module) -> list[Tensor]:
    return [parameter.detach().clone() for parameter in model.parameters()]


def same(first: list[Tensor], second: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
