"""The reference that every fast path is tested against: one example at a time, ordinary autograd."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor, nn

from hushgrad.clipping.rule import ClipRule
from hushgrad.gradients.ordinary import ordinary_gradients


def one_at_a_time(model: nn.Module, losses: Sequence[Callable[[], Tensor]]) -> dict[str, Tensor]:
    """Return the gradient of each example, `[B, *shape]` for each trainable parameter.

    Args:
        model: an ordinary model, without a session attached.
        losses: for each example a function that runs the model on this example alone and returns its scalar loss.
    """
    named = {name: parameter for name, parameter in model.named_parameters() if parameter.requires_grad}
    gradients: dict[str, list[Tensor]] = {name: [] for name in named}
    for loss in losses:
        total = loss()
        found = ordinary_gradients([total], [torch.ones_like(total)], named)
        for name, parameter in named.items():
            gradients[name].append(found[name] if name in found else torch.zeros_like(parameter))
    return {name: torch.stack(parts) for name, parts in gradients.items()}


def clipped_sum_of(per_example: Mapping[str, Tensor], rule: ClipRule) -> dict[str, Tensor]:
    """Return the sum of clipped gradients as the rule's own reference has it, in float64, cast back at the end.

    An example with a gradient that is not finite contributes 0: the rule does not see it.
    """
    squared_B = torch.stack([g.double().reshape(g.shape[0], -1).square().sum(1) for g in per_example.values()]).sum(0)
    finite_B = torch.isfinite(squared_B)
    if not finite_B.any():
        return {name: gradients.new_zeros(gradients.shape[1:]) for name, gradients in per_example.items()}
    found = rule.reference({name: gradients[finite_B].double() for name, gradients in per_example.items()})
    return {name: total.to(per_example[name].dtype) if name in per_example else total for name, total in found.items()}
