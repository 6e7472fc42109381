"""Function transforms of torch (`torch.func`, forward-mode derivatives), under which nothing can be captured."""

from __future__ import annotations

from typing import NoReturn

import torch
from torch.autograd import forward_ad

from hushgrad.errors import UncoveredParameterUseError


def transform_in_force() -> str | None:
    """Return the name of the innermost transform that is running in this thread; None outside of any."""
    if torch._C._functorch.maybe_current_level() is not None:
        interpreter = torch._C._functorch.peek_interpreter_stack()
        return f"torch.func.{interpreter.key().name.lower()}"
    return None if forward_ad._current_level < 0 else "forward-mode differentiation"


def refuse_transforms(transform: str, name: str) -> NoReturn:
    """Refuse the use of a parameter under a transform: its rows or values are not those of the batch as they look."""
    raise UncoveredParameterUseError(
        f"{name}: is used under {transform}, where its use cannot be seen. Call the model, and every part of it that "
        f"holds trainable parameters, on the whole batch and outside of torch.func; to look at a model that is being "
        f"trained, transform a copy of it (copy.deepcopy(model))"
    )
