"""The reference that every fast path is tested against: one example at a time, ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn


def one_at_a_time(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Return the gradient of each example, `[B, *shape]` for each trainable parameter.

    Args:
        model: an ordinary model, without a session attached.
        losses: for each example a function that runs the model on this example alone and returns its scalar loss.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients: dict[str, list[Tensor]] = {name: [] for name in named}
    for loss in losses:
        found = torch.autograd.grad(loss(), list(named.values()), allow_unused=True)
        for (name, parameter), gradient in zip(named.items(), found, strict=True):
            gradients[name].append(torch.zeros_like(parameter) if gradient is None else gradient)
    return {name: torch.stack(parts) for name, parts in gradients.items()}


def clipped_sum_of(per_example: Mapping[str, Tensor], max_grad_norm: float) -> dict[str, Tensor]:
    """Return Σ_i g_i · min(1, C/‖g_i‖) from explicit gradients, in float64, cast back at the end.

    An example with a gradient that is not finite contributes 0.
    """
    squared_B = torch.stack([g.double().reshape(g.shape[0], -1).square().sum(1) for g in per_example.values()]).sum(0)
    finite_B = torch.isfinite(squared_B)
    factors_B = (max_grad_norm / squared_B.sqrt()).clamp(max=1).masked_fill(~finite_B, 0)
    sums = {}
    for name, gradient in per_example.items():
        kept = gradient.double().masked_fill(~finite_B.reshape(-1, *[1] * (gradient.ndim - 1)), 0)
        sums[name] = torch.tensordot(factors_B, kept, 1).to(gradient.dtype)
    return sums
