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
    SegmentIds,
    location_of,
    owners_along,
    owners_of_axis,
    packed_owners,
)
from hushgrad.capture.axes.rules import AxisRule, OperatorCall, dims_of, elementwise, is_basic, like_first, viewed
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
    if call.func in SPLITS and len(locations) == 1:
        return _split(call, owned[0], out) if owned else _folded(call, locations[0], out)
    if rule not in ROW_RULES or not owned or len(owned) != len(locations):
        return None
    if any(not owned[0].same_rows(part) for part in owned[1:]):
        return None
    # Like examples that have one row each: a rule for B examples then looks for as many places as there are rows.
    row_wise = replace(call, axes=[part.dim for part in owned], batch_size=owned[0].rows.shape[0])
    assert rule is not None
    dim = rule(row_wise, out, output_index)
    if dim is None or out.shape[dim] != owned[0].rows.shape[0]:
        return None
    if rule is elementwise and _meets_other_rows(row_wise, out.ndim - dim):
        return None
    if rule is lookups.read and lookups.meets_other_rows(row_wise):
        return None
    return SegmentIds(dim, owned[0].rows)


def _meets_other_rows(call: OperatorCall, from_right: int) -> bool:
    """Whether a constant of the call has a value for each row: rows would no longer be treated alike."""
    constants = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
    return any(
        value.ndim >= from_right and value.shape[-from_right] != 1
        for value in constants
        if all(value is not source for source in call.sources)
    )


def _split(call: OperatorCall, owned: SegmentIds, out: Tensor) -> BatchLocation:
    """`[..., T·B, ...]` to `[..., T, B, ...]`, or a reshape of the dimensions behind the rows."""
    x, dim, rows = call.first, owned.dim, owned.rows
    if list(out.shape[: dim + 1]) == list(x.shape[: dim + 1]):
        return owned
    if out.ndim < dim + 2 or list(out.shape[:dim]) != list(x.shape[:dim]):
        return None
    first, second = out.shape[dim : dim + 2]
    if first * second != rows.shape[0] or not rows.numel():
        return None
    table = rows.view(first, second)
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
    rows = owners_along(x, location, dim, call.batch_size)
    if rows is None:
        return None
    found = rows[order.to(rows.device)]
    own = next((part for source, part in zip(call.sources, locations, strict=True) if source is order), None)
    chosen_by = owners_along(order, own, 0, call.batch_size)
    if chosen_by is not None and not torch.equal(chosen_by, found):
        return None  # an example's place that says a row of another one
    return location_of(dim, found, call.batch_size)


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
        sequences = location.rows if location.dim == dim else None
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
ROW_RULES: set[AxisRule] = {
    elementwise,
    like_first,
    viewed,
    products.linear,
    products.layer_normalized,
    products.embedding,
    lookups.read,
    lookups.selected,
}
"""Axis rules of operators that treat all rows alike, whatever their number."""
