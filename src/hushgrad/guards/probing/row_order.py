"""Do rows reach the model in the order in which the loader handed them out? Some are known by their place.

A loop that sorts or shuffles the rows of an item would have padding counted in place of records, or the records of one
user clipped with those of another. Where the model's inputs are the item's own values, that shows; where the loop
computes them anew, it does not.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from hushgrad.accounting.conditions import ORDER_OF_ROWS, ROWS_OF_USERS, Condition
from hushgrad.errors import ProtocolError
from hushgrad.guards.probing.trees import tensors_at


class KnownByPlace(NamedTuple):
    """What of an item is known by the place of its rows.

    Attributes:
        what: it, for messages.
        cure: what to do in place of keeping the order of rows.
        on_trust: what is taken on trust where their order cannot be told.
        always: whether every item is looked at, or a few.
    """

    what: str
    cure: str
    on_trust: Condition
    always: bool


PADDING = KnownByPlace(
    "with constant_shapes the last rows of an item are padding, known by their position",
    "leave constant_shapes out",
    ORDER_OF_ROWS,
    always=False,
)
USERS = KnownByPlace(
    "where whole users are drawn, whose a row is is known by its position",
    "draw records by themselves",
    ROWS_OF_USERS,
    always=True,
)


def rows_are_in_order(item: Any, inputs: Any, rows: int, known: KnownByPlace = PADDING) -> bool:
    """Return whether some input of the model has its rows as the item has them; False where it cannot be told.

    Args:
        item: what the loader handed out.
        inputs: what the model was called with.
        rows: how many rows the item has, on axis 0.
        known: what is known by their place.

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
            f"the rows of an item reached the model in another order than the loader's, and {known.what}",
            cure=f"Keep the order of the rows, or {known.cure}",
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
