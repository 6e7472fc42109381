"""A model with capture on it, and what its recorded uses should sum to."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import HushgradError
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.oracle import clipped_sum_of, one_at_a_time

B = 5
C = 0.7


class Attached:
    """A model with capture on it, and what was recorded."""

    def __init__(self, model: nn.Module, batch_size: int | None = B) -> None:
        self.model, self.pool = model, UsePool()
        self.pool.batch_size = batch_size
        self.scope = Scope(model, self.pool)

    def sums(self) -> dict[str, Tensor]:
        return clipped_sums(self.pool.take(), clip=FlatClipping(C))


def batch() -> Tensor:
    return torch.randn(B, 4, dtype=torch.float64)


def losses(out: Tensor) -> Tensor:
    return out.flatten(1).sin().sum(1)


def wanted(model: nn.Module, *losses_of_row: Callable[[nn.Module, int], Tensor]) -> dict[str, Tensor]:
    """The clipped sums of Σ over the given losses, one example at a time, on an ordinary copy of the model."""
    alone = copy.deepcopy(model)
    runs = [lambda i=i: torch.stack([loss(alone, i) for loss in losses_of_row]).sum() for i in range(B)]
    return clipped_sum_of(one_at_a_time(alone, runs), FlatClipping(C))


def assert_same(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert set(found) == set(expected)
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-10, atol=1e-12)


class Model(nn.Module):
    """A model whose forward is given."""

    def __init__(self, forward: Callable[..., Tensor], **children: Any) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            setattr(self, name, child)

    def forward(self, *inputs: Tensor) -> Tensor:
        return self.run(self, *inputs)


X = torch.randn(B, 4)
P = nn.Parameter(torch.randn(4))


def refused(
    error: type[HushgradError], match: str, forward: Callable[..., Tensor], *inputs: Tensor, **children: Any
) -> None:
    """Check that a model is refused by the end of its backward, and that nothing is recorded."""
    attached = Attached(Model(forward, **children))
    try:
        with pytest.raises(error, match=match):
            losses(attached.model(*inputs)).sum().backward()
    finally:
        attached.scope.detach()
    assert attached.pool.take() == {}
    assert all(parameter.grad is None for parameter in attached.model.parameters())
