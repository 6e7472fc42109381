"""Do rows reach the model in the order in which the loader handed them out? Some are known by their place.

A loop that sorts or shuffles the rows of an item would have padding counted in place of records, or the records of one
user clipped with those of another. Where the model's inputs are the item's own values, that shows; where the loop
computes them anew, it does not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hushgrad.accounting.conditions import ORDER_OF_ROWS, ROWS_OF_USERS, Condition
from hushgrad.errors import PrivacyUnitError, ProtocolError
from hushgrad.guards.probing.trees import tensors_at


class KnownByPlace(NamedTuple):
    """What of an item is known by the place of its rows.

    Attributes:
        what: it, for messages.
        cure: what to do in place of keeping the order of rows.
        on_trust: what is taken on trust where their order cannot be told.
        always: whether every item is looked at and has to tell, or one of a few.
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


MOST_LOOKS = 3
"""How many items are looked at for the order of padding, where it cannot be told."""


class RowOrder:
    """Looks whether the rows of items reach the model in their order, through one session.

    Items are kept as they were handed out: a loop may write into them.
    """

    def __init__(self) -> None:
        self._item: _Expected | None = None
        self._told: Counter[KnownByPlace] = Counter()  # items with an input in order
        self._untold: Counter[KnownByPlace] = Counter()  # items that reached the model by none

    def expect(self, item: Any, rows: int, known: KnownByPlace) -> None:
        """The item that comes now, of so many rows on axis 0, has what is known by its place."""
        self._told[known] += 0
        if known.always or (self._told[known] == 0 and self._untold[known] < MOST_LOOKS):
            parts = [part.detach().clone() for _, part in tensors_at(item) if part.ndim and part.shape[0] == rows]
            self._item = _Expected([_numbers(part) for part in parts], known)

    def entering(self, inputs: Any) -> None:
        """The model is called with these inputs.

        Raises:
            ProtocolError: one of them has all the rows of a part of the item, in another order.
        """
        item = self._item
        if item is None or not torch.is_grad_enabled():
            return
        in_order = rows_are_in_order(item.parts, inputs, item.known)
        if not item.is_met:
            self._untold[item.known] += 1
            item.is_met = True
        if in_order and not item.is_told:
            self._untold[item.known] -= 1
            self._told[item.known] += 1
            item.is_told = True

    def forget(self) -> None:
        """The item is done."""
        self._item = None

    def require_kept(self, *, reorders: bool) -> None:
        """Refuse a loop that `reorders` the rows of items where something is known by their place in every item.

        Raises:
            PrivacyUnitError: it gives the model the rows in another order than the loader's.
        """
        known = next((known for known in self._told if known.always), None)
        if known is not None and reorders:
            raise PrivacyUnitError(
                f"the loop gives the model the rows of an item in another order than the loader's, and {known.what}",
                cure=f"Keep the order of the rows, or {known.cure}",
            )

    @property
    def on_trust(self) -> tuple[Condition, ...]:
        """What could not be told: of padding if no item told it, of others if one of the items did not."""
        return tuple(
            known.on_trust for known, told in self._told.items() if not told or (known.always and self._untold[known])
        )


@dataclass
class _Expected:
    parts: list[Tensor]
    known: KnownByPlace
    is_met: bool = False
    is_told: bool = False


def rows_are_in_order(parts: Sequence[Tensor], inputs: Any, known: KnownByPlace = PADDING) -> bool:
    """Return whether some input of the model has its rows as the item has them; False where it cannot be told.

    Args:
        parts: what the loader handed out, each with a row for each example on axis 0; no NaN in them.
        inputs: what the model was called with.
        known: what is known by their place.

    Raises:
        ProtocolError: an input has all the rows of a part of the item, in another order.
    """
    is_told = False
    for tensor in (_numbers(tensor) for _, tensor in tensors_at(inputs)):
        alike = [part for part in parts if part.shape == tensor.shape and part.dtype == tensor.dtype]
        if any(torch.equal(part.to(tensor.device), tensor) for part in alike):
            is_told = True
        elif any(_is_permuted(part.to(tensor.device), tensor) for part in alike):
            raise ProtocolError(
                f"the rows of an item reached the model in another order than the loader's, and {known.what}",
                cure=f"Keep the order of the rows, or {known.cure}",
            )
    return is_told


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
