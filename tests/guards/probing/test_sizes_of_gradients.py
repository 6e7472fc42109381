"""What changes gradients by their size must not see how many records were drawn: they are not divided before it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError

X = torch.randn(16, 4, generator=torch.Generator().manual_seed(1))

Change = Callable[[Tensor], Tensor]
CHANGES: dict[str, Change] = {
    "a clamp": lambda g: g.clamp(-1e-3, 1e-3),
    "a threshold": lambda g: g * (g.abs() > 0.05),
    "each row to norm 1": lambda g: g / g.norm(dim=1, keepdim=True).clamp(min=1e-9),
}


class Hooked(nn.Module):
    def __init__(self, change: Change) -> None:
        super().__init__()
        self.first, self.second, self.change = nn.Linear(4, 4), nn.Linear(4, 3), change

    def forward(self, x: Tensor) -> Tensor:
        h = self.first(x) * 1.0
        if h.requires_grad:
            h.register_hook(self.change)  # type: ignore[no-untyped-call]
        return self.second(h)


def losses(out: Tensor) -> Tensor:
    return out.square().sum(1)


def sum_of(records: Tensor, change: Change, way: str) -> Tensor:
    """The update times the number of records: what was summed, of examples that are not clipped."""
    torch.manual_seed(0)
    model, engine = Hooked(change), PrivacyEngine()
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
        out = model(x)
        if way == "per_example":
            criterion(out).backward()
        elif way == "session":
            engine.session.backward(losses(out))
        else:
            losses(out).mean().backward()
        optimizer.step()
    after = torch.cat([p.detach().flatten() for p in model.parameters()])
    return (before - after).double() * len(records)


@pytest.mark.parametrize("way", ["per_example", "session", "scalar"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_record_more_changes_no_other_ones_gradient(change: Change, way: str) -> None:
    whole = sum_of(X, change, way)
    alone = torch.stack([sum_of(torch.stack([x, x]), change, way) / 2 for x in X]).sum(0)
    assert float((whole - alone).norm() / whole.norm()) < 1e-5


def train_divided(model: nn.Module) -> None:
    """Train one batch on a mean whose backward is no call of `loss.backward()`, at which it could be multiplied."""
    engine = PrivacyEngine()
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(list(X), batch_size=16),  # type: ignore[arg-type]
        noise_multiplier=0.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    for x in loader:
        torch.autograd.backward([losses(model(x)).mean()])
        optimizer.step()


def test_a_mean_of_the_loops_own_that_stays_divided_is_refused() -> None:
    model = Hooked(CHANGES["a clamp"])
    before = [parameter.detach().clone() for parameter in model.parameters()]
    with pytest.raises(CrossSampleLeakError, match="by their size"):
        train_divided(model)
    assert all(torch.equal(one, two) for one, two in zip(before, model.parameters(), strict=True))


def test_a_constant_factor_trains_also_where_the_mean_stays_divided() -> None:
    train_divided(Hooked(lambda g: 0.5 * g))
