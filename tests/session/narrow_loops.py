"""Loops in 16 bits: the clipped sums that they give, and those of one example at a time."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.randomness import KeyStream

Loss = Callable[[nn.Module, Tensor, Tensor], Tensor]
BF16, FP16 = torch.bfloat16, torch.float16
CLIP = 0.3


class Spy:
    """The clipped sums of the physical batches, before they are rounded to the parameters' dtype."""

    def __init__(self) -> None:
        self.sums: list[dict[str, Tensor]] = []

    def total(self) -> Tensor:
        names = sorted({name for part in self.sums for name in part})
        return torch.cat([sum(part[name].double().flatten() for part in self.sums) for name in names])  # type: ignore[misc]


def model_of(dtype: torch.dtype = torch.float32, out: int = 3) -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, out)).to(dtype)


def records(count: int, out: int = 3) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    return torch.randn(count, 4, generator=generator), torch.arange(count) % out


def attach(model: nn.Module, x: Tensor, y: Tensor, clip: float = CLIP, **more: Any) -> tuple[Any, Session, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1e-9,
        clipping=FlatClipping(clip),
        sampling=PoissonSampling(1.0),
        expected_batch_size=len(x),
        loss_reduction=more.pop("reduction", "mean"),
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(1), **more)
    return optimizer, session, session.batches(TensorDataset(x, y))


def trained(loss: Loss, model: nn.Module, x: Tensor, y: Tensor, **more: Any) -> set[str]:
    optimizer, session, loader = attach(model, x, y, **more)
    for item in loader:
        loss(model, item[0], item[1]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    names = {condition.name for condition in session.guarantee(1e-5).conditions}
    session.close()
    return names


def one_at_a_time(
    loss: Loss, model: nn.Module, x: Tensor, y: Tensor, *, clip: float = CLIP, scale: float = 1.0
) -> Tensor:
    """The oracle: each example alone, in the same precision, and the sum of its clipped gradients in float64."""
    total: Tensor | None = None
    for i in range(len(x)):
        (loss(model, x[i : i + 1], y[i : i + 1]).float() * scale).backward()  # type: ignore[no-untyped-call]
        parts = {name: p.grad.double().flatten() / scale for name, p in model.named_parameters() if p.grad is not None}
        model.zero_grad()
        gradient = torch.cat([parts[name] for name in sorted(parts)])
        gradient = gradient * (clip / gradient.norm()).clamp(max=1)
        total = gradient if total is None else total + gradient
    assert total is not None
    return total


def autocast(dtype: torch.dtype) -> Any:
    return torch.autocast("cpu", dtype) if dtype is not torch.float32 else nullcontext()


def all_in_autocast(dtype: torch.dtype) -> Loss:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with autocast(dtype):
            return F.cross_entropy(model(x), y)

    return loss
