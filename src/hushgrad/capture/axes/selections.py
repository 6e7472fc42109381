"""Rows that are selected by the batch's own values, and put back: masks, `nonzero`, `sort`, `index_add`.

Two kinds are kept apart.

*Own*: which rows of an example are taken follows from this example alone. `h[mask]`, `torch.where(expert == 2)`: the
mask was computed row by row. The rows have owners (`segment_ids.py`), and that is all there is to know of them.

*Moved*: which rows are taken, or in which order, follows from the others too: `tokens[expert.argsort()]`. The rows are
their owners', but a row's rank, and whether it is there at all (a capacity, the k largest of a batch), is not. So
such rows carry the place that each came from, and are the batch's again only where all of them stand in their old
places, none missing and none twice. That is looked at by value in every call: a capacity that is not reached changes
nothing, and the first batch in which it is reached is refused.

A worked example: tokens [4, d] of B = 2 examples with 2 tokens each, experts 1 0 0 0.

    torch.where(expert == 0)[0]        1 2 3        pointers, own: tokens of examples 0 1 1
    x = tokens[_]                      [3, d]       rows 0 1 1
    out.index_add(0, _, layer(x))      [4, d]       axis 0: each row at a place of its own example
    key, order = expert.sort()         1 2 3 0      pointers, moved: examples 0 1 1 0; the key is 0 0 0 1
    x = tokens[order]                  [4, d]       rows 0 1 1 0, moved from the places 1 2 3 0
    layer(x)[order.argsort()]          [4, d]       axis 0: places 0 1 2 3 again

Guarantee: what has an axis again, after rows of it were selected, holds at each place values of this place's own
example, put there by this example's own values alone.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.lookups import reading_of
from hushgrad.capture.axes.owners import (
    BatchLocation,
    Moved,
    SegmentIds,
    location_of_source,
    owners_of_axis,
    row_of,
)
from hushgrad.capture.axes.rules import OperatorCall, dims_of, is_basic
from hushgrad.capture.axes.segment_ids import SELECTIONS
from hushgrad.torch_internals import GROUPED_MM


@dataclass(frozen=True, eq=False)
class Pointers:
    """An integer tensor of one dimension (and others of size 1) whose r-th value is a place along a batch dimension.

    Attributes:
        rows: the example that owns the r-th place.
        count: how many places that dimension has.
        moved: None where the places of an example follow from it alone; else which places these are.
    """

    rows: Tensor
    count: int
    moved: Moved | None = None


@dataclass(frozen=True, eq=False)
class Coordinates:
    """`nonzero` of a mask with several dimensions, `[n, dims]`: column `axis` holds places along the batch's."""

    rows: Tensor
    count: int
    axis: int


@dataclass(frozen=True, eq=False)
class Listed:
    """Numbers of what is there in the batch, one by one: `counts.greater(0).nonzero()`, the experts that any row chose.

    A loop over them is one over numbers that were read (`tolist`), and is told as such: see `BatchAxes.has_read`. One
    that leaves some of them out follows which are the first, or the last, of the whole batch, and loses it.

    Attributes:
        there: the numbers.
        read: those at which data were read so far.
    """

    there: frozenset[int]
    read: set[int] = field(default_factory=set)

    @property
    def is_read_in_part(self) -> bool:
        """Whether data were read at some of the numbers, and not at others."""
        return bool(self.read) and self.read != self.there


Location = BatchLocation | Pointers | Coordinates | Listed


def follow_selections(call: OperatorCall, locations: Sequence[Any], result: Any, out: Tensor, output_index: int) -> Any:
    """Return where the batch lies in an output of a call that makes pointers, or puts rows back by them; else None."""
    func = call.func
    if func in DIVISIONS:
        return _divided(call, locations)
    if func in NONZERO:
        return _true_places(call, locations, out, output_index)
    if func in SORTS:
        return _sorted(call, locations, result, output_index)
    main = location_of_source(call, locations, call.first)
    if isinstance(main, Listed):
        return main if func in SAME or func in (Tensor.unbind, torch.unbind) or _is_basic_index(call) else None
    if func is Tensor.__getitem__ and (listed := listed_of(call.args[1], locations, call.sources)) is not None:
        listed.read.add(int(call.args[1]))
        return main - 1 if isinstance(main, int) and main > 0 else None
    if isinstance(main, Coordinates):
        return _column(call, main, out, output_index)
    if isinstance(main, Pointers):
        is_same = func in SAME or _is_column(call)
        return main if len(locations) == 1 and is_same and out.numel() == call.first.numel() else None
    if func in SELECTIONS:
        return rows_by_index(call, locations, out)
    if func is GROUPED_MM:
        return _grouped(call, locations)
    if func in PUTS:
        return _put(call, locations, out)
    if func is torch.masked_select or func is Tensor.masked_select:
        return _masked(call, locations)
    return None


def _is_basic_index(call: OperatorCall) -> bool:
    return call.func is Tensor.__getitem__ and is_basic(call.args[1])


def listed_of(index: Any, locations: Sequence[Any], sources: Sequence[Tensor]) -> Listed | None:
    """Return the list that an index is one number of; None where it is no such number."""
    if not isinstance(index, Tensor) or index.ndim:
        return None
    found = (part for source, part in zip(sources, locations, strict=True) if source is index)
    return next((part for part in found if isinstance(part, Listed)), None)


# Making pointers -------------------------------------------------------------------------------------------------


def _true_places(call: OperatorCall, locations: Sequence[Any], out: Tensor, output_index: int) -> Any:
    """`nonzero(mask)` and `where(mask)`: a column of places for each dimension of the mask."""
    mask, location = call.first, locations[0]
    if location is None and mask.ndim == 1 and mask.dtype == torch.bool:
        return Listed(frozenset(out.flatten().tolist()))
    if len(call.sources) != 1 or not isinstance(location, int) or mask.shape[location] % call.batch_size:
        return None
    if call.func in WHERES and len(call.args) + len(call.kwargs) != 1:
        return None  # the form that selects among two tensors
    owners = owners_of_axis(mask.shape[location], call.batch_size, mask.device)
    if out.ndim == 2:
        rows = owners[out[:, location]]
        count = mask.shape[location]
        return Pointers(rows, count) if mask.ndim == 1 else Coordinates(rows, count, location)
    places = mask.detach().nonzero()[:, location]
    if places.shape[0] != out.shape[0]:
        return None
    rows = owners[places]
    return Pointers(rows, mask.shape[location]) if output_index == location else SegmentIds(0, rows)


def _is_column(call: OperatorCall) -> bool:
    """Whether a call is `_[:, 0]`."""
    return call.func is Tensor.__getitem__ and isinstance(call.args[1], tuple) and call.args[1] == (slice(None), 0)


def _column(call: OperatorCall, location: Coordinates, out: Tensor, output_index: int) -> Any:
    """`_[:, j]`, `unbind(1)` of the places of a mask with several dimensions."""
    if call.func is Tensor.unbind or call.func is torch.unbind:
        column = output_index if call.argument(1, "dim", 0) in (1, -1) else None
    elif call.func is Tensor.__getitem__ and isinstance(call.args[1], tuple) and len(call.args[1]) == 2:
        before, column = call.args[1]
        column = column % call.first.shape[1] if before == slice(None) and isinstance(column, int) else None
    else:
        return None
    if column is None or out.ndim != 1:
        return None
    return Pointers(location.rows, location.count) if column == location.axis else SegmentIds(0, location.rows)


def _sorted(call: OperatorCall, locations: Sequence[Any], result: Any, output_index: int) -> Any:
    """`sort` and `argsort` of one number for each place along the batch: the places in an order that others decide."""
    key, location = call.first, locations[0]
    if len(call.sources) != 1 or key.ndim != 1 or location != 0 or key.shape[0] % call.batch_size:
        return None
    is_pair = not isinstance(result, Tensor)
    places = result[1] if is_pair else result
    in_order = result[0] if is_pair else key.detach()[places]
    rows = owners_of_axis(key.shape[0], call.batch_size, key.device)[places]
    moved = Moved(places, key.shape[0], None, in_order.detach())
    return SegmentIds(0, rows, moved) if is_pair and output_index == 0 else Pointers(rows, key.shape[0], moved)


def _divided(call: OperatorCall, locations: Sequence[Any]) -> Any:
    """`order // k`, where every place of a dimension is k places of a longer one, one behind the other."""
    pointers, by = locations[0], call.argument(1, "other", call.kwargs.get("x2"))
    mode = call.argument(2, "rounding_mode", call.kwargs.get("rounding_mode", "floor"))
    if not isinstance(pointers, Pointers) or not isinstance(by, int) or isinstance(by, bool) or by < 1:
        return None
    if len(call.sources) != 1 or mode not in ("floor", "trunc") or pointers.count % (by * call.batch_size):
        return None
    return replace(pointers, count=pointers.count // by)


# Selecting rows --------------------------------------------------------------------------------------------------


def rows_by_index(call: OperatorCall, locations: Sequence[Any], out: Tensor) -> Any:
    """`x[pointers]`, `x[pointers, columns]`, `x[mask]`, `x.index_select(dim, pointers)` along the batch axis of data.

    Of constants, too: at each place they hold what the ordinary operators would meet there.
    """
    x = call.first
    if call.func is not Tensor.__getitem__:
        index: Any = (*[slice(None)] * (call.argument(1, "dim") % max(x.ndim, 1)), call.argument(2, "index"))
    else:
        index = call.args[1]
    only = index[0] if isinstance(index, tuple) and len(index) == 1 else index
    if isinstance(only, Tensor) and only.dtype == torch.bool:
        return _masked(call, locations, only)
    found = pointed(call, locations, index, x.ndim)
    if found is None:
        return None
    at, before, pointers = found
    if _target_of(call, locations) not in (CONSTANT, at) or x.shape[at] != pointers.count:
        return None
    fits = before < out.ndim and out.shape[before] == pointers.rows.shape[0]
    return SegmentIds(before, pointers.rows, pointers.moved) if fits else None


def pointed(call: OperatorCall, locations: Sequence[Any], index: Any, ndim: int) -> tuple[int, int, Pointers] | None:
    """Return the dimension that an index reads at pointers, that of the rows in the result, and the pointers.

    Other dimensions may be read at numbers, or at columns of the same rows.
    """
    if call.func is Tensor.__getitem__ and not isinstance(index, (tuple, Tensor)):
        return None
    reading = reading_of(index, ndim)
    if reading is None:
        return None
    found: tuple[int, Pointers] | None = None
    for dim, part in zip(reading.dims, reading.places, strict=True):
        location = location_of_source(call, locations, part) if isinstance(part, Tensor) else None
        if isinstance(location, Pointers) and part.ndim == 1:  # type: ignore[union-attr]
            if found is not None:
                return None
            found = dim, location
    if found is None:
        return None
    at, pointers = found
    for part in reading.places:
        location = location_of_source(call, locations, part)
        if not isinstance(part, Tensor) or location is pointers:
            continue
        same = isinstance(location, SegmentIds) and location.moved is pointers.moved and part.ndim == 1
        if not same or not torch.equal(location.rows, pointers.rows):
            return None
    return at, reading.before, pointers


def _masked(call: OperatorCall, locations: Sequence[Any], mask: Tensor | None = None) -> Any:
    """`x[mask]`: rows in their order, as many of each example as its own part of the mask says."""
    x = call.first
    mask = call.argument(1, "mask") if mask is None else mask
    whole = call.func is not Tensor.__getitem__
    if not isinstance(mask, Tensor) or (whole and mask.shape != x.shape):
        return None
    location, own = _target_of(call, locations), location_of_source(call, locations, mask)
    if isinstance(location, SegmentIds) and isinstance(own, SegmentIds):
        is_of_rows = location.dim == own.dim == 0 and mask.ndim == 1 and location.same_rows(own)
        if not is_of_rows or location.moved is not None:
            return None
        return SegmentIds(0, location.rows[mask])
    rows = _owners_of_mask(mask, own, call.batch_size)
    if rows is None or location not in (CONSTANT, own) or x.shape[own] != mask.shape[own]:
        return None
    return SegmentIds(0, rows)


def _owners_of_mask(mask: Tensor, location: Any, batch_size: int) -> Tensor | None:
    """Return the owner of each place where a mask is true."""
    if mask.dtype != torch.bool or not isinstance(location, int) or mask.shape[location] % batch_size:
        return None
    owners = owners_of_axis(mask.shape[location], batch_size, mask.device)
    return owners[mask.nonzero()[:, location]]


def _grouped(call: OperatorCall, locations: Sequence[Any]) -> Any:
    """`grouped_mm(rows, matrices, offs)`: every row meets one of constant matrices."""
    x = call.first
    location = location_of_source(call, locations, x)
    rest = [source for source in call.sources if source is not x and source is not call.kwargs.get("offs")]
    return location if not rest and groups_follow_key(x, location, call.args[1], call.kwargs) else None


def groups_follow_key(x: Tensor, location: Any, matrices: Tensor, kwargs: Mapping[str, Any]) -> bool:
    """Return whether each row of a `grouped_mm` meets the matrix whose number is the key that rows are sorted by.

    The ends of the groups are counts over the batch. That what a row meets follows from its own key, and not from them,
    is looked at in every call: a group that is cut off, or numbered otherwise, is not the rows of one key.
    """
    ends = kwargs.get("offs")
    if not isinstance(location, SegmentIds) or location.dim != 0 or location.moved is None:
        return False
    key = location.moved.key
    if key is None or ends is None or x.ndim != 2 or matrices.ndim != 3 or kwargs.get("bias") is not None:
        return False
    count = x.shape[0]
    if ends.ndim != 1 or ends.shape[0] != matrices.shape[0] or not count or int(ends[-1]) != count:
        return False
    groups = torch.searchsorted(ends.detach().long(), torch.arange(count, device=ends.device), right=True)
    return torch.equal(groups, key.long().to(groups.device))


# Putting rows back -----------------------------------------------------------------------------------------------


def _put(call: OperatorCall, locations: Sequence[Any], out: Tensor) -> Any:
    """`index_add`, `index_copy` and `index_put`: rows at places that pointers say."""
    target = call.first
    if call.func in INDEX_PUTS:
        indices, value = call.argument(1, "indices"), call.argument(2, "values")
        if not isinstance(indices, (tuple, list)):
            return None
        if len(indices) > 1:
            return placed_by_columns(call, locations, tuple(indices), value)
        dim, index, adds = 0, indices[0], bool(call.argument(3, "accumulate", False))
    else:
        dims = dims_of(call.argument(1, "dim"), max(target.ndim, 1))
        if dims is None:
            return None
        dim, index, adds = min(dims), call.argument(2, "index"), call.func in INDEX_ADDS
        value = call.argument(3, "source", call.kwargs.get("tensor"))
    if not isinstance(value, Tensor) or value.ndim != target.ndim:
        return None
    return placed(
        target,
        _target_of(call, locations),
        dim,
        (index, location_of_source(call, locations, index)),
        (value, location_of_source(call, locations, value)),
        call.batch_size,
        adds=adds,
    )


def _target_of(call: OperatorCall, locations: Sequence[Any]) -> Any:
    is_data = any(source is call.first for source in call.sources)
    return location_of_source(call, locations, call.first) if is_data else CONSTANT


CONSTANT = object()
"""Stands for the location of a tensor that is no data."""


def placed(
    target: Tensor,
    location: Any,
    dim: int,
    index: tuple[Any, Any],
    value: tuple[Tensor, Any],
    batch_size: int,
    *,
    adds: bool = False,
) -> int | None:
    """Return the axis of the batch in a target whose places `index` along `dim` receive the rows of `value`.

    Args:
        target: what is written to; its values at other places stay.
        location: where the batch lies in it; `CONSTANT` if it is no data.
        dim: the dimension of the places.
        index: the places, and where the batch lies in them.
        value: the rows, and where the batch lies in them.
        batch_size: B.
        adds: whether rows at one place are added up, so that it does not matter which of them comes last.
    """
    if location is not CONSTANT and location != dim:
        return None
    places, pointers = index
    rows = row_of(*value, batch_size)
    if not isinstance(places, Tensor) or places.ndim != 1 or rows is None or rows.dim != dim:
        return None
    if target.shape[dim] % batch_size or rows.rows.shape[0] != places.shape[0]:
        return None
    if rows.moved is not None:
        return dim if _is_back(rows.moved, places, pointers, target.shape[dim], adds) else None
    is_own = isinstance(pointers, Pointers) and pointers.moved is None and pointers.count == target.shape[dim]
    return dim if is_own and torch.equal(pointers.rows, rows.rows) else None


def placed_by_columns(call: OperatorCall, locations: Sequence[Any], index: Any, value: Any) -> int | None:
    """Return the axis of the batch after `target[pointers, columns] = rows`; None if it is lost."""
    target = call.first
    found = pointed(call, locations, index, target.ndim)
    if found is None or not isinstance(value, Tensor):
        return None
    at, before, pointers = found
    rows = row_of(value, location_of_source(call, locations, value), call.batch_size)
    if rows is None or rows.moved is not None or pointers.moved is not None or rows.dim != before:
        return None
    is_own = _target_of(call, locations) in (CONSTANT, at) and pointers.count == target.shape[at]
    return at if is_own and torch.equal(pointers.rows, rows.rows) else None


def _is_back(moved: Moved, places: Tensor, pointers: Any, count: int, adds: bool) -> bool:
    """Whether moved rows are all there, and each is put to its own place, or all to a place that they share."""
    if moved.origin is not None or not moved.is_complete:
        return False
    if isinstance(pointers, Pointers) and pointers.moved is not None:
        return pointers.count == count and (adds or count == moved.total) and pointers.moved.same(moved)
    return count == moved.total and torch.equal(places.long(), moved.places.long())


def axis_after_mask(
    target: Tensor, location: Any, mask: tuple[Tensor, Any], value: tuple[Tensor, Any], batch_size: int
) -> int | None:
    """Return the axis of the batch after `target[mask] = value` with rows that were selected; None if it is lost.

    `mask` and `value` come with where the batch lies in them; for `target` and `location` see `placed`.
    """
    own = mask[1]
    if not isinstance(own, int) or (location is not CONSTANT and location != own):
        return None
    wanted, found = _owners_of_mask(*mask, batch_size), row_of(*value, batch_size)
    if wanted is None or found is None or found.dim != 0 or found.moved is not None:
        return None
    if target.shape[own] != mask[0].shape[own]:
        return None
    return own if torch.equal(found.rows.to(wanted.device), wanted) else None


def reads_numbers(func: Callable[..., Any], locations: Iterable[Any]) -> bool:
    """Return whether a call takes numbers of the batch out of torch: values, or how many rows others selected.

    Where the batch lies on an axis, and where all rows were put in another order, a shape says nothing but the batch
    size.
    """
    if func in VALUES:
        return True
    return func in SIZES and any(not _has_fixed_size(location) for location in locations)


def chooses(location: Any) -> bool:
    """Return whether what has this location holds as many rows as the batch's values say."""
    return isinstance(location, (Coordinates, Listed)) or (
        isinstance(location, (SegmentIds, Pointers)) and location.moved is None
    )


def regroups(location: Any) -> bool:
    """Return whether rows of what has this location come together by values of the batch: chosen, or put in order."""
    return isinstance(location, (Coordinates, Listed, SegmentIds, Pointers))


def _has_fixed_size(location: Any) -> bool:
    is_moved = isinstance(location, (SegmentIds, Pointers)) and location.moved is not None
    return is_moved or isinstance(location, int)


_Functions = set[Callable[..., Any]]
_size_of: Any = Tensor.shape
VALUES: _Functions = {
    *(Tensor.item, Tensor.tolist, Tensor.numpy, Tensor.__bool__, Tensor.__int__, Tensor.__float__, Tensor.__index__),
    *(Tensor.__complex__, Tensor.__array__, torch.equal, Tensor.equal, torch.allclose, Tensor.allclose),
}  # fmt: skip
SIZES: _Functions = {Tensor.size, Tensor.__len__, Tensor.numel, torch.numel, Tensor.nelement, _size_of.__get__}
WHERES: _Functions = {torch.where}
NONZERO: _Functions = {torch.nonzero, Tensor.nonzero, torch.argwhere, Tensor.argwhere, *WHERES}
SORTS: _Functions = {torch.sort, Tensor.sort, torch.argsort, Tensor.argsort}
DIVISIONS: _Functions = {
    *(torch.div, Tensor.div, torch.floor_divide, Tensor.floor_divide, Tensor.__floordiv__),
}  # fmt: skip
INDEX_PUTS: _Functions = {torch.index_put, Tensor.index_put, Tensor.index_put_}
INDEX_ADDS: _Functions = {torch.index_add, Tensor.index_add, Tensor.index_add_}
PUTS: _Functions = {
    *INDEX_ADDS,
    *(torch.index_copy, Tensor.index_copy, Tensor.index_copy_),
    *INDEX_PUTS,
}  # fmt: skip
SAME: _Functions = {
    *(torch.reshape, Tensor.reshape, Tensor.view, torch.flatten, Tensor.flatten, torch.squeeze, Tensor.squeeze),
    *(torch.unsqueeze, Tensor.unsqueeze, torch.ravel, Tensor.ravel, Tensor.contiguous, Tensor.clone, torch.clone),
    *(Tensor.to, Tensor.long, Tensor.int, Tensor.detach, torch.detach),
}  # fmt: skip
"""Operators that keep all pointers in their order, where the number of values stays."""
