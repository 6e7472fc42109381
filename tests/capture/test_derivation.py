"""Tensors made of parameters alone: exact where they meet the batch, refused where they do not."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from private_loops import Training
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hushgrad.errors import UncoveredParameterUseError


class Positions(nn.Module):
    """A position embedding, whose result is made of parameters alone, and a layer."""

    def __init__(self, hook: Any = None) -> None:
        super().__init__()
        self.positions, self.layer, self.hook = nn.Embedding(3, 3), nn.Linear(3, 2), hook

    def forward(self, x: Tensor) -> Tensor:
        places = self.positions(torch.arange(3)[None])
        if self.hook is not None:
            places.register_hook(self.hook)
        return self.layer(x + places.sum(1))


def test_counting_the_operations_of_a_private_step_with_torchs_own_counter_changes_nothing() -> None:
    """FlopCounterMode hangs hooks that only look on what goes into modules and comes out of them."""
    training = Training(model=Positions(), physical=None)
    for x, y in training.loader:
        with FlopCounterMode(display=False) as counter:
            nn.functional.mse_loss(training.model(x), y).backward()
            training.optimizer.step()
        assert counter.get_total_flops() > 0
    assert training.session.steps == 3


def test_a_hook_that_may_change_the_gradient_of_a_derived_parameter_is_refused() -> None:
    training = Training(model=Positions(hook=lambda gradient: gradient * 2), physical=None)
    x, _ = next(iter(training.loader))
    with pytest.raises(UncoveredParameterUseError, match="Remove the hook"):
        training.model(x)
