"""Hooks and functions of the loop's that change gradients by their size see no number of drawn records."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from summed import Change, X, moved_by_others, sum_of
from torch import Tensor, nn

from hushgrad.errors import CrossSampleLeakError


def linear() -> nn.Module:
    return nn.Linear(4, 3)


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


@pytest.mark.parametrize("way", ["per_example", "session", "scalar"])
@pytest.mark.parametrize("change", [hooked, halved, through_a_function])
def test_a_record_more_changes_no_other_ones_gradient(change: Change, way: str) -> None:
    assert moved_by_others(linear, way, change=change) < 1e-5


@pytest.mark.parametrize("change", [hooked, through_a_function])
def test_a_mean_that_stays_divided_above_them_is_refused_by_the_line_of_the_hook(change: Change) -> None:
    with pytest.raises(
        CrossSampleLeakError, match=r"test_loss_sizes.py, line \d+\): gradients are changed by their size"
    ):
        sum_of(X, linear, "divided", change=change)


def test_a_constant_factor_trains_above_a_mean_that_stays_divided() -> None:
    sum_of(X, linear, "divided", change=halved)
