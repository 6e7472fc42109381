"""Whose is which row: rows of examples in an irregular order, tensors of one example alone, and ordinary axes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.rules import OperatorCall


@dataclass(frozen=True, eq=False)
class Moved:
    """Rows of a tensor in an order, or a choice, that follows from more than their owners (`selections.py`).

    Attributes:
        places: of each row, the place that it came from.
        total: how many places there were.
        origin: the rows' owners there; None where they lay on an ordinary axis.
        key: of each row the number by which it was sorted, which follows from its owner; None where it was not.
    """

    places: Tensor
    total: int
    origin: SegmentIds | None = None
    key: Tensor | None = None

    def same(self, other: Moved | None) -> bool:
        """Return whether rows came from the same places."""
        if other is None or self.total != other.total or self.origin is not other.origin:
            return False
        return self.places is other.places or torch.equal(self.places, other.places)

    @property
    def is_complete(self) -> bool:
        """Whether the row of every place is there, once."""
        return self.places.shape[0] == self.total and self.is_in_order_by(self.places.argsort())

    def is_in_order_by(self, order: Tensor) -> bool:
        """Whether the rows in this order are all in their old places."""
        again = self.places[order]
        return again.shape[0] == self.total and torch.equal(again, torch.arange(self.total, device=again.device))


@dataclass(frozen=True, eq=False)
class SegmentIds:
    """Row r on dimension `dim` belongs to example `rows[r]`; `rows` holds numbers below the batch size, int64.

    `moved` says where rows came from that were put in another order by what others hold, too; None for all others.
    """

    dim: int
    rows: Tensor
    moved: Moved | None = None

    def same_rows(self, other: SegmentIds) -> bool:
        """Return whether two tensors' rows have the same owners in the same order, and came from the same places."""
        if self.moved is not other.moved and not (self.moved is not None and self.moved.same(other.moved)):
            return False
        return self.rows is other.rows or torch.equal(self.rows, other.rows)

    def blocks(self, tensor: Tensor, batch_size: int) -> Tensor:
        """Return `tensor` as `[B, k, ...]` with each example's rows in their order, zeros where it has fewer than k."""
        tensor = tensor.movedim(self.dim, 0)
        count = self.rows.shape[0]
        if not count:
            return tensor.new_zeros(batch_size, 1, *tensor.shape[1:])
        if count % batch_size == 0 and self._is_interleaved(batch_size):
            return tensor.reshape(count // batch_size, batch_size, *tensor.shape[1:]).transpose(0, 1)
        rows = self.rows.to(tensor.device)
        order = rows.argsort(stable=True)
        sizes = torch.bincount(rows, minlength=batch_size)
        starts = sizes.cumsum(0) - sizes
        owners = rows[order]
        within = torch.arange(count, device=rows.device) - starts[owners]
        padded = tensor.new_zeros(batch_size, max(int(sizes.max()), 1), *tensor.shape[1:])
        padded[owners, within] = tensor[order]
        return padded

    def _is_interleaved(self, batch_size: int) -> bool:
        regular = torch.arange(batch_size, device=self.rows.device).expand(self.rows.shape[0] // batch_size, -1)
        return torch.equal(self.rows.view(-1, batch_size), regular)


@dataclass(frozen=True)
class Whole:
    """The whole tensor belongs to one example, whatever its dimensions are (`pieces.py`)."""

    example: int

    def blocks(self, tensor: Tensor, batch_size: int) -> Tensor:
        """Return `tensor` as `[B, *shape]`: zeros for all other examples."""
        alone = tensor.new_zeros(batch_size, *tensor.shape)
        alone[self.example] = tensor
        return alone


BatchLocation = int | SegmentIds | Whole | None
"""Where the batch lies in a tensor: on an axis, in rows with owners, all with one owner, or nowhere that is known."""


def dim_of(location: BatchLocation) -> int | None:
    """Return the dimension along which the examples lie, whether in their own order or not; None if there is none."""
    if isinstance(location, SegmentIds):
        return location.dim
    return location if isinstance(location, int) else None


def owners_of_axis(size: int, batch_size: int, device: torch.device) -> Tensor:
    """Return the owner of each place along an ordinary batch axis of the given size."""
    return torch.arange(batch_size, device=device).repeat_interleave(size // batch_size)


def location_of(dim: int, rows: Tensor, batch_size: int) -> BatchLocation:
    """Return an ordinary axis where the rows are in the examples' own order, else their owners."""
    size = rows.shape[0]
    if size == 0:
        return None
    if size % batch_size == 0 and torch.equal(rows, owners_of_axis(size, batch_size, rows.device)):
        return dim
    return SegmentIds(dim, rows)


def row_of(tensor: Tensor, location: BatchLocation, batch_size: int) -> SegmentIds | None:
    """Return the owner of each row of a tensor, also where they lie on an ordinary axis; None where none is known."""
    if isinstance(location, SegmentIds):
        return location
    if not isinstance(location, int) or tensor.shape[location] % batch_size:
        return None
    return SegmentIds(location, owners_of_axis(tensor.shape[location], batch_size, tensor.device))


def packed_owners(batch_sizes: Tensor, sequences: Tensor) -> Tensor:
    """Return the owner of each row of a packed sequence whose j-th longest sequence belongs to `sequences[j]`."""
    return torch.cat([sequences[:count] for count in batch_sizes.tolist()])


def owners_along(tensor: Tensor, location: BatchLocation, dim: int, batch_size: int) -> Tensor | None:
    """Return the owner of each place along a dimension; None where the examples do not lie there."""
    if isinstance(location, SegmentIds):
        is_own = location.dim == dim and location.moved is None  # what is there of moved rows others decide, too
        return location.rows.to(tensor.device) if is_own else None
    if location != dim or not isinstance(location, int) or tensor.shape[dim] % batch_size:
        return None
    return owners_of_axis(tensor.shape[dim], batch_size, tensor.device)


def location_of_source(call: OperatorCall, locations: Sequence[Any], value: Any) -> Any:
    """Return where the batch lies in one of a call's arguments; None if it is no data, or not known."""
    return next((part for source, part in zip(call.sources, locations, strict=True) if source is value), None)
