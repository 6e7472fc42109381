"""Runs of capture and of the oracle, and distances between sums."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.gradients.oracle import one_at_a_time

Losses = Callable[[Tensor], Tensor]
Uses = Mapping[str, Sequence[Contribution]]


def captured(model: nn.Module, batch: Tensor, losses: Losses, plan: Plan | None = None) -> Uses:
    """Run forward and backward under capture and return what was recorded. No ordinary gradient may be formed."""
    pool = UsePool(plan)
    pool.batch_size = batch.shape[0]
    scope = Scope(model, pool)
    try:
        losses(model(batch)).sum().backward()  # type: ignore[no-untyped-call]
    finally:
        scope.detach()
    assert all(parameter.grad is None for parameter in model.parameters())
    return pool.take()


def clipped(uses: Uses, max_grad_norm: float, plan: Plan | None = None) -> dict[str, Tensor]:
    """Return the clipped sums of recorded uses."""
    return clipped_sums(
        {name: list(parts) for name, parts in uses.items()}, clip=FlatClipping(max_grad_norm), plan=plan
    )


def reference(model: nn.Module, batch: Tensor, losses: Losses) -> dict[str, Tensor]:
    """Return per-example gradients by running a copy of the model on one example at a time."""
    alone = copy.deepcopy(model)
    runs = [lambda i=i: losses(alone(batch[i : i + 1])).sum() for i in range(batch.shape[0])]
    return one_at_a_time(alone, runs)


def norm_of(per_example: Mapping[str, Tensor]) -> Tensor:
    """Return the norm of each example's gradient over all parameters together, `[B]`, in float64."""
    return (
        torch.stack([value.double().reshape(value.shape[0], -1).square().sum(1) for value in per_example.values()])
        .sum(0)
        .sqrt()
    )


def distance(found: Mapping[str, Tensor], wanted: Mapping[str, Tensor], *, relative: bool = True) -> float:
    """Return ‖found − wanted‖ over all parameters together, divided by ‖wanted‖ if relative.

    A parameter that is missing on one side has the gradient 0.
    """
    difference, size = 0.0, 0.0
    for name in {*found, *wanted}:
        some = next(value for value in (found.get(name), wanted.get(name)) if value is not None)
        zero = torch.zeros_like(some, dtype=torch.float64)
        a, b = found.get(name, zero).detach().double(), wanted.get(name, zero).detach().double()
        difference += float((a - b).square().sum())
        size += float(b.square().sum())
    return difference**0.5 / (size**0.5 if relative and size else 1.0)
