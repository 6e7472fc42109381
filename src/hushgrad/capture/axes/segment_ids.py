"""Rows that belong to the examples in an irregular order: packed sequences, sorted batches, rows ordered t·B + b.

Such a tensor has no batch axis in the sense of `batch_axes.py`. It has a dimension of rows and, for each row, the
example that owns it. Only operators that treat every row alike keep the owners; back in the regular order, the tensor
has an ordinary axis again. Whatever else is done with it loses the batch.

A worked example: sequences of lengths 2 and 3 as examples 0 and 1, packed with the longest first.

    x                              [2, 3, d]   axis 0
    pack_padded_sequence(x, ...)   [5, d]      rows 1 0 1 0 1     at each time step, the examples that still run
    linear(_.data)                 [5, p]      rows 1 0 1 0 1     each row alike: a use of the weight
    pad_packed_sequence(_)         [2, 3, p]   axis 0             sorted back, owners 0 1: an ordinary axis

For the weight's gradient `blocks` gathers each example's rows in their order, padded with zeros: `[5, p]` becomes
`[B, k, p] = [2, 3, p]`, whose example 0 has its two rows and a row of zeros. The same serves time first: `[T, B, d]`
folded to `[T·B, d]` has the owners 0 1 0 1 0 1, and a split back to `[T, B, d]` finds axis 1 again.

Guarantee: what a row holds was computed from its owner alone, by operations that do not depend on the row's place.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes import lookups as lookups
from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.rules import (
    ROW_WISE,
    AxisRule,
    OperatorCall,
    dims_of,
    elementwise,
    is_basic,
    like_first,
    viewed,
)
from hushgrad.torch_internals import PACK, PAD_PACKED


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


# Operators on rows with owners ------------------------------------------------------------------------------------


def follow_rows(
    call: OperatorCall, locations: list[BatchLocation], out: Tensor, output_index: int, rule: AxisRule | None
) -> BatchLocation:
    """Return where the batch lies in an output of an operator for which its ordinary rule found no axis.

    Args:
        call: the call; the axes in it are not looked at.
        locations: where the batch lies in each of the call's data.
        out: the output.
        output_index: the output's index among the outputs.
        rule: the operator's ordinary rule.
    """
    if call.func in SELECTIONS and any(source is call.first for source in call.sources):
        selected = _selected(call, locations, out)
        if selected is not None or not _is_view(call):
            return selected
        rule = viewed
    if call.func is PACK:
        return _packed(call, locations) if output_index == 0 else None
    if call.func is PAD_PACKED:
        return _unpacked(call, locations) if output_index == 0 else None
    owned = [part for part in locations if isinstance(part, SegmentIds)]
    if owned and len(owned) < len(locations):  # rows that happen to be in the examples' own order have an axis
        all_rows = [row_of(source, at, call.batch_size) for source, at in zip(call.sources, locations, strict=True)]
        owned = [part for part in all_rows if part is not None]
    if call.func in SPLITS and len(locations) == 1:
        return _split(call, owned[0], out) if owned else _folded(call, locations[0], out)
    if (rule not in ROW_RULES and rule not in ROW_WISE) or not owned or len(owned) != len(locations):
        return None
    if any(not owned[0].same_rows(part) for part in owned[1:]):
        return None
    # Like examples that have one row each: a rule for B examples then looks for as many places as there are rows.
    row_wise = replace(call, axes=[part.dim for part in owned], batch_size=owned[0].rows.shape[0])
    assert rule is not None
    dim = rule(row_wise, out, output_index)
    if dim is None or out.shape[dim] != owned[0].rows.shape[0]:
        return None
    if (rule is elementwise or rule in ROW_WISE) and _meets_other_rows(row_wise, owned[0], out.ndim - dim, rule):
        return None
    if rule in PRODUCTS and _multiplies_rows_apart(row_wise, owned[0]):
        return None
    if rule is lookups.read and lookups.meets_other_rows(row_wise):
        return None
    return replace(owned[0], dim=dim)


def _meets_other_rows(call: OperatorCall, owned: SegmentIds, from_right: int, rule: AxisRule) -> bool:
    """Whether a constant of the call has a value for each row: rows would no longer be treated alike."""
    if rule in ROW_WISE:
        from_right = call.sources[0].ndim - owned.dim
    constants = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    return any(
        value.ndim >= from_right and value.shape[-from_right] != 1
        for value in constants
        if all(value is not source for source in call.sources)
    )


def _multiplies_rows_apart(call: OperatorCall, owned: SegmentIds) -> bool:
    """Whether a constant of a product has a matrix, or a term, for each row."""
    values = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    constants = [value for value in values if all(value is not source for source in call.sources)]
    distance = call.sources[0].ndim - owned.dim
    if any(distance > 2 and value.ndim >= distance and value.shape[-distance] != 1 for value in constants):
        return True
    term = values[0] if len(values) > 2 else None  # of addmm, which is added to every row alike
    is_constant = term is not None and any(term is value for value in constants)
    return is_constant and term is not None and term.ndim >= distance and term.shape[-distance] != 1


def _split(call: OperatorCall, owned: SegmentIds, out: Tensor) -> BatchLocation:
    """`[..., T·B, ...]` to `[..., T, B, ...]`, `[..., B·m, ...]` to `[..., B, m, ...]`, or what leaves rows alone."""
    x, dim, rows = call.first, owned.dim, owned.rows
    if list(out.shape[: dim + 1]) == list(x.shape[: dim + 1]):
        return owned
    if out.ndim < dim + 2 or list(out.shape[:dim]) != list(x.shape[:dim]):
        return None
    first, second = out.shape[dim : dim + 2]
    if first * second != rows.shape[0] or not rows.numel() or owned.moved is not None:
        return None
    table = rows.view(first, second)
    if first == call.batch_size and torch.equal(rows, owners_of_axis(rows.shape[0], first, rows.device)):
        return dim  # as many rows of each example
    if not bool((table == table[:1]).all()):
        return None
    return location_of(dim + 1, table[0], call.batch_size)


def _folded(call: OperatorCall, axis: BatchLocation, out: Tensor) -> BatchLocation:
    """`[T, B, ...]` to `[T·B, ...]`: rows ordered t·B + b, where an ordinary axis is lost."""
    x = call.first
    if not isinstance(axis, int) or axis == 0 or not out.numel() or out.numel() != x.numel():
        return None
    blocks = x.shape[axis] // call.batch_size
    behind = blocks * math.prod(x.shape[axis + 1 :])
    for dim in range(min(axis, out.ndim)):
        outer = math.prod(x.shape[dim:axis]) * call.batch_size
        if list(out.shape[:dim]) == list(x.shape[:dim]) and out.shape[dim] % outer == 0:
            inner = out.shape[dim] // outer
            if behind % inner == 0:
                own = owners_of_axis(call.batch_size * inner, call.batch_size, x.device)
                return location_of(dim, own.repeat(outer // call.batch_size), call.batch_size)
    return None


def _is_view(call: OperatorCall) -> bool:
    """Whether an index consists of numbers and slices only."""
    if call.func is not Tensor.__getitem__:
        return False
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    return all(part is None or part is Ellipsis or is_basic(part) for part in index)


def _selected(call: OperatorCall, locations: list[BatchLocation], out: Tensor) -> BatchLocation:
    """`x.index_select(dim, order)` or `x[order]`: rows in another order, some of them left out or repeated."""
    x = call.first
    location = next((part for source, part in zip(call.sources, locations, strict=True) if source is x), None)
    if location is None:
        return None
    if call.func is Tensor.__getitem__:
        dim, order = 0, call.args[1]
    else:
        dims = dims_of(call.argument(1, "dim"), x.ndim)
        dim, order = (-1 if dims is None else next(iter(dims))), call.argument(2, "index")
    if not isinstance(order, Tensor) or order.ndim != 1 or order.dtype not in (torch.int64, torch.int32):
        return None
    call_order = order
    own = None if dim != dim_of(location) else row_of(x, location, call.batch_size)
    if own is None:
        return None
    order = order.to(own.rows.device).long()
    order = torch.where(order < 0, order + own.rows.shape[0], order)
    rows = own.rows[order]
    if not any(source is call_order for source in call.sources):
        return location_of(dim, rows, call.batch_size) if own.moved is None else None
    return _moved(call, own, isinstance(location, SegmentIds), order, rows, dim)


def _moved(
    call: OperatorCall, own: SegmentIds, is_irregular: bool, order: Tensor, rows: Tensor, dim: int
) -> BatchLocation:
    """Rows in an order that the batch says: an axis, or the owners of before, where all are back in their places."""
    if call.batch_size == 1:
        return dim  # all rows are the one example's
    moved = own.moved
    if moved is None:
        count, device = own.rows.shape[0], own.rows.device
        moved = Moved(torch.arange(count, device=device), count, own if is_irregular else None)
        if is_irregular and count == call.batch_size and Moved(own.rows, count).is_complete:
            moved = Moved(own.rows, count)  # one row of each example: its owner is its place
    if moved.is_in_order_by(order):
        return dim if moved.origin is None else replace(moved.origin, dim=dim)
    key = None if moved.key is None else moved.key[order]
    return SegmentIds(dim, rows, Moved(moved.places[order], moved.total, moved.origin, key))


def _unpacked(call: OperatorCall, locations: list[BatchLocation]) -> BatchLocation:
    """`pad_packed_sequence`: a row for each sequence, longest first."""
    data, batch_sizes, batch_first = call.args[:3]
    location = next((part for source, part in zip(call.sources, locations, strict=True) if source is data), None)
    if not isinstance(location, SegmentIds) or not batch_sizes.numel():
        return None
    sequences = location.rows[: int(batch_sizes[0])]
    if not torch.equal(location.rows, packed_owners(batch_sizes, sequences)):
        return None
    return location_of(0 if batch_first else 1, sequences, call.batch_size)


def _packed(call: OperatorCall, locations: list[BatchLocation]) -> BatchLocation:
    """`pack_padded_sequence` of padded data with one sequence for each row."""
    x, _, batch_first = call.args[:3]
    location = next((part for source, part in zip(call.sources, locations, strict=True) if source is x), None)
    dim = 0 if batch_first else 1
    if isinstance(location, SegmentIds):
        is_of_sequences = location.dim == dim and (location.moved is None or location.moved.total == call.batch_size)
        sequences = location.rows if is_of_sequences else None
    else:
        sequences = owners_of_axis(x.shape[dim], call.batch_size, x.device) if location == dim else None
    if sequences is None:
        return None
    padded = sequences.reshape([-1, 1] if batch_first else [1, -1]).expand(x.shape[:2]).unsqueeze(-1)
    rows, _ = PACK(padded.double(), call.args[1], batch_first)
    return SegmentIds(0, rows.squeeze(-1).long())


SPLITS: set[Callable[..., Any]] = {torch.reshape, Tensor.reshape, Tensor.view, Tensor.unflatten, Tensor.flatten}
SPLITS |= {torch.flatten, torch.unflatten}
SELECTIONS: set[Callable[..., Any]] = {torch.index_select, Tensor.index_select, Tensor.__getitem__}
PRODUCTS: set[AxisRule] = {products.product, products.added_product}
ROW_RULES: set[AxisRule] = {
    elementwise,
    like_first,
    viewed,
    products.linear,
    products.product,
    products.added_product,
    products.layer_normalized,
    products.embedding,
    lookups.read,
    lookups.selected,
}
"""Axis rules of operators that treat all rows alike, whatever their number."""
