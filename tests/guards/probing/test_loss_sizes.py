"""Hooks and functions of the loop's that change gradients by their size see no number of drawn records."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

Change = Callable[[Tensor], Tensor]


class Clamped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, h: Tensor) -> Tensor:
        return h.clone()

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        return g.clamp(-0.01, 0.01)


def hooked(out: Tensor) -> Tensor:
    out = out * 1.0
    out.register_hook(lambda g: g * (g.abs() > 0.05))  # type: ignore[no-untyped-call]
    return out


def halved(out: Tensor) -> Tensor:
    out = out * 1.0
    out.register_hook(lambda g: 0.5 * g)  # type: ignore[no-untyped-call]
    return out


def through_a_function(out: Tensor) -> Tensor:
    return Clamped.apply(out)  # type: ignore[no-any-return,no-untyped-call]


def losses(out: Tensor) -> Tensor:
    return out.square().sum(1)


def sum_of(records: Tensor, change: Change, way: str) -> Tensor:
    """The update times the number of records: what was summed, of examples that are not clipped."""
    torch.manual_seed(0)
    model, engine = nn.Linear(4, 3), PrivacyEngine()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    before = torch.cat([p.detach().flatten().clone() for p in model.parameters()])
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(records), batch_size=len(records)),  # type: ignore[arg-type]
        noise_multiplier=0.0,
        max_grad_norm=1e6,
        poisson_sampling=False,
    )
    criterion = engine.per_example(losses)
    for x in loader:
        out = change(model(x))
        if way == "per_example":
            criterion(out).backward()
        elif way == "session":
            engine.session.backward(losses(out))
        elif way == "scalar":
            losses(out).mean().backward()
        else:  # no call of loss.backward(), at which the mean could be multiplied
            torch.autograd.backward([losses(out).mean()])
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    return (before - after).double() * len(records)


@pytest.mark.parametrize("way", ["per_example", "session", "scalar"])
@pytest.mark.parametrize("change", [hooked, halved, through_a_function])
def test_a_record_more_changes_no_other_ones_gradient(change: Change, way: str) -> None:
    whole = sum_of(X, change, way)
    alone = torch.stack([sum_of(torch.stack([x, x]), change, way) / 2 for x in X]).sum(0)
    assert float((whole - alone).norm() / whole.norm()) < 1e-5


@pytest.mark.parametrize("change", [hooked, through_a_function])
def test_a_mean_that_stays_divided_above_them_is_refused_by_the_line_of_the_hook(change: Change) -> None:
    with pytest.raises(
        CrossSampleLeakError, match=r"test_loss_sizes.py, line \d+\): gradients are changed by their size"
    ):
        sum_of(X, change, "divided")


def test_a_constant_factor_trains_above_a_mean_that_stays_divided() -> None:
    sum_of(X, halved, "divided")
