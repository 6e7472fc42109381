"""Do rows reach the model in the order in which the loader handed them out? Padding is known by its place.

A loop that sorts or shuffles the rows of an item would have padding counted in place of records. Where the model's
inputs are the item's own values, that shows; where the loop computes them anew, it does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from hushgrad.errors import ProtocolError
from hushgrad.guards.probing.trees import tensors_at


def rows_are_in_order(item: Any, inputs: Any, rows: int) -> bool:
    """Return whether some input of the model has its rows as the item has them; False where it cannot be told.

    Args:
        item: what the loader handed out.
        inputs: what the model was called with.
        rows: how many rows the item has, on axis 0.

    Raises:
        ProtocolError: an input has all the rows of a part of the item, in another order.
    """
    parts = [_numbers(part) for _, part in tensors_at(item) if part.ndim and part.shape[0] == rows]
    moved = False
    for tensor in (_numbers(tensor) for _, tensor in tensors_at(inputs)):
        alike = [part for part in parts if part.shape == tensor.shape and part.dtype == tensor.dtype]
        if any(torch.equal(part.to(tensor.device), tensor) for part in alike):
            return True
        moved = moved or any(_is_permuted(part.to(tensor.device), tensor) for part in alike)
    if moved:
        raise ProtocolError(
            "the rows of an item reached the model in another order than the loader's. With constant_shapes the last "
            "rows of an item are padding, known by their position",
            cure="Keep the order of the rows, or leave constant_shapes out",
        )
    return False


def _numbers(tensor: Tensor) -> Tensor:
    """Return values that equal themselves: NaN does not."""
    return tensor.nan_to_num() if tensor.is_floating_point() else tensor


@torch.no_grad()
def _is_permuted(part: Tensor, tensor: Tensor) -> bool:
    """Whether the same rows come in another order; rows that are mostly alike say nothing."""
    one, other = (value.reshape(value.shape[0], -1) for value in (part, tensor))
    marks, others = _marks(one), _marks(other)
    if torch.unique(marks).shape[0] <= max(2, marks.shape[0] // 2):
        return False
    return torch.equal(one[marks.argsort()], other[others.argsort()])


def _marks(rows_PK: Tensor) -> Tensor:
    """Return a number for each row that different rows hardly share, `[P]`."""
    weights_K = torch.rand(rows_PK.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    return (rows_PK.double() * weights_K.to(rows_PK.device)).sum(1)
