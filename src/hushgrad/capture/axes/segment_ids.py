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
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes import lookups as lookups
from hushgrad.capture.axes import products as products
from hushgrad.capture.axes.added_rows import added, is_sum_of_rows
from hushgrad.capture.axes.owners import (
    BatchLocation,
    Moved,
    SegmentIds,
    dim_of,
    location_of,
    location_of_source,
    owners_along,
    owners_of_axis,
    packed_owners,
    row_of,
)
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


def follow_rows(
    call: OperatorCall,
    locations: list[BatchLocation],
    out: Tensor,
    output_index: int,
    rule: AxisRule | None,
    divisions: Mapping[int, Tensor],
) -> BatchLocation:
    """Return where the batch lies in an output of an operator for which its ordinary rule found no axis.

    Args:
        call: the call; the axes in it are not looked at.
        locations: where the batch lies in each of the call's data.
        out: the output.
        output_index: the output's index among the outputs.
        rule: the operator's ordinary rule.
        divisions: the owner of each row in flat tensors of so many rows.
    """
    if is_sum_of_rows(call.func):
        return added(call, locations, out, divisions)
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
    location = location_of_source(call, locations, x)
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
    chosen_by = owners_along(call_order, location_of_source(call, locations, call_order), 0, call.batch_size)
    if own.moved is None and chosen_by is not None:  # a place that an example itself names: of its own rows, or lost
        return location_of(dim, rows, call.batch_size) if torch.equal(chosen_by.to(rows.device), rows) else None
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
    location = location_of_source(call, locations, data)
    if not isinstance(location, SegmentIds) or not batch_sizes.numel():
        return None
    sequences = location.rows[: int(batch_sizes[0])]
    if not torch.equal(location.rows, packed_owners(batch_sizes, sequences)):
        return None
    return location_of(0 if batch_first else 1, sequences, call.batch_size)


def _packed(call: OperatorCall, locations: list[BatchLocation]) -> BatchLocation:
    """`pack_padded_sequence` of padded data with one sequence for each row."""
    x, _, batch_first = call.args[:3]
    location = location_of_source(call, locations, x)
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
