"""A batch taken apart and put together again: `unbind`, `x[i]`, slices of the batch, and `stack` and `cat` of them.

A piece that holds one example only is `Whole(i)`: whatever is computed from it, by whichever operator, is example i's.
A piece with rows of several examples has owners (`segment_ids.py`). Where pieces are joined, the owners of the rows are
joined with them; rows of examples 0 to B - 1 in their order are the batch again, and any other order has owners.

A worked example, with B = 3:

    a, b, c = x                 [d] each    Whole(0), Whole(1), Whole(2)
    torch.stack([a, b, c])      [3, d]      axis 0
    torch.stack([c, b, a])      [3, d]      rows 2 1 0
    x[:2], x[2:]                [2, d] and [1, d]     rows 0 1, and Whole(2)
    torch.cat([x[:2], x[2:]])   [3, d]      axis 0
    torch.cat([x, 2 * x])       [6, d]      rows 0 1 2 0 1 2; `chunk(2)` gives two batches again
    a + b                       [d]         None: of two examples

Which rows a view holds is read off the same view of the numbers 0, 1, ..., so no shape is ever guessed from.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, Whole, location_of, owners_of_axis
from hushgrad.capture.axes.rules import AxisRule, OperatorCall, dims_of, is_basic, viewed
from hushgrad.torch_internals import PAD_LIST

CATS: set[Callable[..., Any]] = {torch.cat, torch.concat, torch.concatenate}
VSTACKS: set[Callable[..., Any]] = {torch.vstack, torch.row_stack}
"""A `stack` of tensors with one dimension, and a `cat` of others."""
JOINS = {*CATS, *VSTACKS, torch.stack, PAD_LIST}


def follow_pieces(
    call: OperatorCall, locations: Sequence[BatchLocation], out: Tensor, output_index: int, rule: AxisRule | None
) -> BatchLocation:
    """Return where the batch lies in a piece of the batch, in what was computed from one, or in pieces joined."""
    if any(location is None for location in locations):
        return None
    if isinstance(locations[0], Whole):
        examples = {location.example if isinstance(location, Whole) else None for location in locations}
        if len(examples) == 1:
            return locations[0]
    if is_join(call.func):
        return _joined(call, locations, out)
    if len(locations) == 1 and (rule is viewed or _is_cut_by_index(call)):
        return _cut(call, locations[0], out, output_index)
    return None


def is_join(func: Callable[..., Any]) -> bool:
    """Return whether an operator puts tensors together."""
    return func in JOINS


def _is_cut_by_index(call: OperatorCall) -> bool:
    if call.func is not Tensor.__getitem__:
        return False
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    return all(part is None or part is Ellipsis or is_basic(part) for part in index)


def _cut(call: OperatorCall, location: BatchLocation, out: Tensor, output_index: int) -> BatchLocation:
    """A view of some rows: the same view of the rows' numbers."""
    x = call.first
    rows = _owners(x, location, call.batch_size)
    if not isinstance(x, Tensor) or rows is None:
        return None
    dim, owners = rows
    if call.images is None:
        strides = [int(at == dim) for at in range(x.ndim)]
        numbers = torch.arange(x.shape[dim]).as_strided(x.shape, strides)
        args = [numbers if value is x else value for value in call.args]
        result = call.func(*args, **{key: numbers if value is x else value for key, value in call.kwargs.items()})
        call.images = list(result) if isinstance(result, (tuple, list)) else [result]
    image = call.images[output_index]
    if not isinstance(image, Tensor) or image.shape != out.shape:
        return None
    varying = [at for at in range(image.ndim) if image.stride(at) and image.shape[at] != 1]
    if len(varying) > 1:
        return None
    numbers = image[tuple(slice(None) if at in varying else 0 for at in range(image.ndim))]
    rows_of_piece = numbers.reshape(-1)
    if _ranks(owners, rows_of_piece) is None:
        return None
    return _location(varying[0] if varying else 0, owners[rows_of_piece], out, call.batch_size)


def _ranks(owners: Tensor, rows: Tensor) -> list[int] | None:
    """Return which of its owner's rows a piece holds, if it holds the same ones of each of its owners; else None."""
    before = [0] * (int(owners.max()) + 1 if owners.numel() else 0)
    ranks = []
    for owner in owners.tolist():
        ranks.append(before[owner])
        before[owner] += 1
    held: dict[int, list[int]] = {}
    for row in rows.tolist():
        held.setdefault(int(owners[row]), []).append(ranks[row])
    found = list(held.values()) or [[]]
    return found[0] if all(one == found[0] for one in found) else None


def form_of_cut(call: OperatorCall, location: BatchLocation, output_index: int) -> Any:
    """Return what a view takes of each example: which of its rows, and what of them; alike for all parts of a split."""
    x = call.first
    rows = _owners(x, location, call.batch_size)
    if rows is None or call.images is None:
        return None
    dim, owners = rows
    image = call.images[output_index]
    varying = [at for at in range(image.ndim) if image.stride(at) and image.shape[at] != 1]
    numbers = image[tuple(slice(None) if at in varying else 0 for at in range(image.ndim))].reshape(-1)
    strides = [0] * x.ndim
    for at in reversed([at for at in range(x.ndim) if at != dim]):
        strides[at] = math.prod(x.shape[other] for other in range(at + 1, x.ndim) if other != dim)
    inner = torch.empty_strided(x.shape, strides, dtype=x.dtype, device="meta")
    args = [inner if value is x else value for value in call.args]
    result = call.func(*args, **{key: inner if value is x else value for key, value in call.kwargs.items()})
    view = result[output_index] if isinstance(result, (tuple, list)) else result
    seen = [(view.stride(at), view.shape[at]) for at in range(view.ndim) if view.stride(at)]
    if _are_all_rows(owners, numbers):
        return "all rows", view.storage_offset(), seen
    return _ranks(owners, numbers), view.storage_offset(), seen


def _are_all_rows(owners: Tensor, rows: Tensor) -> bool:
    """Whether a piece has all rows of each of its owners, in order: examples need not have equally many."""
    own = owners[rows]
    return rows.numel() > 0 and all(
        torch.equal(rows[own == owner], (owners == owner).nonzero().flatten()) for owner in torch.unique(own)
    )


def _joined(call: OperatorCall, locations: Sequence[BatchLocation], out: Tensor) -> BatchLocation:
    """`cat` and `stack` of data: the rows of all parts, one part behind the other; a constant part has no owner.

    So does `pad_sequence`, which stacks its parts before or behind the positions.
    """
    if call.func is PAD_LIST:
        owners = [location.example for location in locations if isinstance(location, Whole)]
        dim = int(not call.argument(1, "batch_first", False))
        return _location(dim, torch.tensor(owners), out, call.batch_size) if len(owners) == len(locations) else None
    parts = call.argument(0, "tensors")
    if call.func in VSTACKS:
        ndims = {part.ndim for part in parts}
        same = torch.stack if ndims == {1} else torch.cat
        if 0 in ndims or (1 in ndims and len(ndims) > 1):
            return None
        call = OperatorCall(same, (parts, 0), {}, call.sources, call.axes, call.batch_size)
    dims = dims_of(call.argument(1, "dim", call.kwargs.get("axis", 0)), max(out.ndim, 1))
    if dims is None or not isinstance(parts, (tuple, list)) or len(parts) != len(locations):
        return None
    dim, is_stack = min(dims), call.func is torch.stack
    if alike := _rows_of_all(locations):
        own = alike.dim + (is_stack and dim <= alike.dim)
        return replace(alike, dim=own) if is_stack or dim != own else _end_to_end(parts, locations, dim, out, call)
    if is_stack:
        owners = [location.example for location in locations if isinstance(location, Whole)]
        return _location(dim, torch.tensor(owners), out, call.batch_size) if len(owners) == len(parts) else None
    return _end_to_end(parts, locations, dim, out, call)


def _end_to_end(
    parts: Sequence[Tensor], locations: Sequence[BatchLocation], dim: int, out: Tensor, call: OperatorCall
) -> BatchLocation:
    owners = []
    for part, location in zip(parts, locations, strict=True):
        if isinstance(location, Whole):
            owners.append(torch.full((part.shape[dim],), location.example))
            continue
        rows = _owners(part, location, call.batch_size)
        if rows is None or rows[0] != dim:
            return None
        owners.append(rows[1])
    return _location(dim, torch.cat(owners), out, call.batch_size)


def _rows_of_all(locations: Sequence[BatchLocation]) -> SegmentIds | None:
    """Return the rows that all parts have alike, on one dimension; None if they have not."""
    first = locations[0]
    if not isinstance(first, SegmentIds):
        return None
    same = all(isinstance(part, SegmentIds) and part.dim == first.dim and first.same_rows(part) for part in locations)
    return first if same else None


def _owners(x: Tensor, location: BatchLocation, batch_size: int) -> tuple[int, Tensor] | None:
    """Return the dimension of the rows and the owner of each, on the CPU."""
    if isinstance(location, SegmentIds):
        return None if location.moved is not None else (location.dim, location.rows.cpu())
    if not isinstance(location, int) or x.shape[location] % batch_size:
        return None
    return location, owners_of_axis(x.shape[location], batch_size, torch.device("cpu"))


def _location(dim: int, owners: Tensor, out: Tensor, batch_size: int) -> BatchLocation:
    """Return the location of rows with these owners: one owner has all of it, wherever its rows lie."""
    if owners.numel() and bool((owners == owners[0]).all()):
        return Whole(int(owners[0]))
    if not out.ndim or owners.numel() != out.shape[dim]:
        return None
    if not owners.numel():
        return SegmentIds(dim, owners.to(out.device))  # no rows at all, as the second half of a small batch
    return location_of(dim, owners.to(out.device), batch_size)
