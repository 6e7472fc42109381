"""Function transforms of torch (`torch.func`, forward-mode derivatives), under which nothing can be captured."""

from __future__ import annotations

from typing import NoReturn

from hushgrad.errors import UncoveredParameterUseError
from hushgrad.torch_internals import functorch_transform, is_forward_differentiating


def transform_in_force() -> str | None:
    """Return the name of the innermost transform that is running in this thread; None outside of any."""
    if (transform := functorch_transform()) is not None:
        return f"torch.func.{transform}"
    return "forward-mode differentiation" if is_forward_differentiating() else None


def refuse_transforms(transform: str, name: str) -> NoReturn:
    """Refuse the use of a parameter under a transform: its rows or values are not those of the batch as they look."""
    raise UncoveredParameterUseError(
        f"is used under {transform}, where its use cannot be seen",
        where=name,
        cure="Call the model, and every part of it that holds trainable parameters, on the whole batch and outside of "
        "torch.func. To look at a model that is being trained, transform a copy of it (copy.deepcopy(model))",
    )
