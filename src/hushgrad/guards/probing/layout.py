"""Is the axis that capture takes for the batch the one on which the item has its records?

Where there are as many positions as records (T = B), a tensor `[T, B, ...]` fits as well as `[B, T, ...]`, and neither
shapes nor a mean over both axes tell which it is. The item tells, as far as the model is given a part of it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from hushgrad.errors import PrivacyUnitError
from hushgrad.guards.probing.trees import Path, tensors_at


def require_records_first(item: Any, axes: Mapping[Path, int], inputs: Any, size: int) -> None:
    """Refuse inputs that are a part of the item with its records on another axis than the first.

    Args:
        item: what the loader handed out.
        axes: of its tensors, where that is not 0, the axis of the records.
        inputs: what the model was given.
        size: B.

    Raises:
        PrivacyUnitError: with the cure.
    """
    square = [
        (tensor, axes.get(path, 0))
        for path, tensor in tensors_at(item)
        if tensor.ndim > 1 and tensor.shape[:2] == (size, size)
    ]
    if not square:
        return
    for _, given in tensors_at(inputs):
        if given.ndim < 2 or given.shape[:2] != (size, size):
            continue
        for tensor, axis in square:
            is_same, is_turned = _equal(given, tensor), _equal(given, tensor.transpose(0, 1))
            if is_same != is_turned and (axis if is_same else 1 - axis) != 0:
                raise PrivacyUnitError(
                    f"the model was given a tensor of shape {list(given.shape)} with the {size} examples on its second "
                    f"axis: the first, which is as long, was taken for them",
                    cure="Give the model the examples on the first axis, and transpose inside its forward",
                )


def _equal(given: Tensor, tensor: Tensor) -> bool:
    if given.shape != tensor.shape:
        return False
    return torch.equal(given.detach(), tensor.detach().to(given.device, given.dtype))
