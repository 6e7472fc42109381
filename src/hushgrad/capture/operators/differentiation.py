"""Gradients by parameters that are taken inside the forward: an inner step, as in meta-learning."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.operators.operator import ForwardContext
from hushgrad.capture.operators.registration import captures
from hushgrad.errors import UncoveredParameterUseError


@captures(torch.autograd.grad, torch.autograd.backward, Tensor.backward, axis=None)
def differentiate(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Refuse `torch.autograd.grad` and `backward` that ask for the gradient by a parameter or a tensor made of some."""
    raise UncoveredParameterUseError(
        "asks inside the forward for a gradient by a parameter, which would be that of the whole batch and not of "
        "an example",
        where=func.__name__,
        cure="Leave out the inner gradient step, or take it before the forward, on a copy of the model "
        "(copy.deepcopy(model)) and on data that is not private",
    )
