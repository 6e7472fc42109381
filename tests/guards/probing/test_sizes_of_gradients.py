"""What changes gradients by their size must not see how many records were drawn: they are not divided before it."""

from __future__ import annotations

import pytest
import torch
from summed import Change, X, losses, moved_by_others
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError

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


@pytest.mark.parametrize("way", ["per_example", "session", "scalar"])
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_a_record_more_changes_no_other_ones_gradient(change: Change, way: str) -> None:
    assert moved_by_others(lambda: Hooked(change), way) < 1e-5


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
