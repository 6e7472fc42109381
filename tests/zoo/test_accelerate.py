"""A plain loop of Accelerate's in bfloat16: its wrappers around model, optimizer and backward change nothing."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine

accelerate = pytest.importorskip("accelerate")

CLIP = 0.5


class Kept(torch.optim.SGD):
    """Ordinary SGD that remembers the gradients it was handed last."""

    seen: Tensor

    def step(self, closure: Any = None) -> Any:
        self.seen = torch.cat([p.grad.flatten().double() for g in self.param_groups for p in g["params"]])
        return super().step(closure)


def one_at_a_time(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    total = torch.zeros(sum(p.numel() for p in model.parameters()), dtype=torch.float64)
    for i in range(len(x)):
        with torch.autocast("cpu", torch.bfloat16):
            out = model(x[i : i + 1])
        nn.functional.cross_entropy(out.float(), y[i : i + 1]).backward()
        gradient = torch.cat([p.grad.flatten().double() for p in model.parameters() if p.grad is not None])
        model.zero_grad()
        total += gradient * (CLIP / gradient.norm()).clamp(max=1)
    return total


@pytest.mark.parametrize("prepared", ["model", "model and optimizer", "all"])
@pytest.mark.parametrize("by", ["loop", "engine"])
def test_a_loop_of_accelerates_in_bfloat16_trains_as_one_example_at_a_time(prepared: str, by: str) -> None:
    accelerate.state.AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = accelerate.Accelerator(mixed_precision="bf16", cpu=True)
    torch.manual_seed(1)
    model: Any = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    ordinary = copy.deepcopy(model)
    x, y = torch.randn(24, 4), torch.arange(24) % 2
    engine, kept = PrivacyEngine(test_key=1), Kept(model.parameters(), lr=0.1)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=kept,
        data_loader=DataLoader(TensorDataset(x, y), batch_size=24),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        poisson_sampling=False,
    )
    given: Any = {"model": [model], "model and optimizer": [model, optimizer], "all": [model, optimizer, loader]}
    made = accelerator.prepare(*given[prepared])
    made = list(made) if isinstance(made, (tuple, list)) else [made]
    model, optimizer, loader = [*made, *[optimizer, loader][len(made) - 1 :]]
    loss = nn.CrossEntropyLoss() if by == "loop" else engine.per_example(nn.CrossEntropyLoss())
    for a, b in loader:
        optimizer.zero_grad()
        accelerator.backward(loss(model(a), b))
        optimizer.step()
    oracle = one_at_a_time(ordinary, x, y)
    assert (kept.seen * 24 - oracle).norm() <= 1e-2 * oracle.norm()
    told = {condition.name for condition in engine.guarantee(1e-5).conditions}
    own = {"own scalar loss"} if by == "loop" else set()
    assert told == {"fixed key", "no ledger path", "rounded together"} | own
    engine.session.close()
