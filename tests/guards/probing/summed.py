"""What one step sums of records that are not clipped, by each way to hand over a loss."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

Change = Callable[[Tensor], Tensor]


def losses(out: Tensor) -> Tensor:
    return out.square().sum(1)


def as_it_is(out: Tensor) -> Tensor:
    return out


def sum_of(records: Tensor, make: Callable[[], nn.Module], way: str, *, change: Change = as_it_is) -> Tensor:
    """Return the update times the number of records: what was summed, of outputs that went through `change`."""
    torch.manual_seed(0)
    model, engine = make(), PrivacyEngine()
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


def moved_by_others(make: Callable[[], nn.Module], way: str, *, change: Change = as_it_is) -> float:
    """Return how far the sum of `X` is from the sum over its records alone, relative to it."""
    whole = sum_of(X, make, way, change=change)
    alone = torch.stack([sum_of(torch.stack([x, x]), make, way, change=change) / 2 for x in X]).sum(0)
    return float((whole - alone).norm() / whole.norm())
