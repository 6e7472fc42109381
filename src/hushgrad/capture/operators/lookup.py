"""Parameters read at places that the batch says: `table[ids]`, `index_select`, `gather`, `take_along_dim`.

All are what `F.embedding` is: rows of the table, with the dimensions that are read in front and flattened. A worked
example: transitions `[n, n]` read at pairs `trans[a, b]`, a and b `[B, T]`. The flat table has n·n rows of one value,
the ids are `a·n + b`, and what is recorded are T rows for each example, never `[B, n, n]`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from hushgrad.capture.axes.lookups import Reading, gathered, read, reading_of, selected, taken_along
from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, Whole, dim_of
from hushgrad.capture.axes.rules import dims_of
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, capture
from hushgrad.capture.operators.registration import captures
from hushgrad.capture.uses import UsePool
from hushgrad.gradients.places import Places
from hushgrad.gradients.rows import Rows


@dataclass(frozen=True, eq=False)
class Lookup(Operator):
    """A table of any shape, read on `dims` at places that broadcast together: `[*places, *other dimensions]`."""

    name: str
    table: TrackedTensor
    axis: BatchLocation
    dims: tuple[int, ...]

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Read the table as torch does, which checks the places; keep them as rows of the flat table."""
        table, *places = (value for value in inputs if value is not None)
        front = table.movedim(self.dims, tuple(range(len(self.dims))))
        ids: Tensor | None = None
        for size, part in zip(front.shape, places, strict=False):
            own = torch.where(part < 0, part + size, part).long()
            ids = own if ids is None else ids * size + own
        return front[tuple(places)], (ids,)

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """Places have no gradient."""
        return (None,) * len(needed)

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record which rows were read and the gradient of each."""
        assert saved[0] is not None
        ids = pool.examples(saved[0], self.axis, self.name)
        gradients = pool.examples(gradient, self.axis, self.name)
        shape = tuple(self.table.value.shape)
        count = math.prod(shape[dim] for dim in self.dims)
        ids_BT = ids.reshape(ids.shape[0], -1)
        rows = Rows(ids_BT, gradients.reshape(*ids_BT.shape, math.prod(shape) // count), count)
        if len(shape) == 2 and self.dims == (0,):
            return [(self.table, rows)]
        return [(self.table, Places(rows, shape, self.dims))]


@captures(Tensor.__getitem__, axis=read)
def indexed(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `table[...]` with places among slices, numbers and `None`."""
    table, index = args
    reading = reading_of(index, table.ndim)
    return NotImplemented if reading is None else _read(context, func, table, reading)


@captures(torch.index_select, Tensor.index_select, axis=selected)
def index_select(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Capture `index_select(table, dim, index)`."""
    if kwargs.get("out") is not None:
        return NotImplemented
    table, dim, index = _selecting(*args, **kwargs)
    if table.ndim == 0 or index.ndim != 1:
        return NotImplemented
    reading = reading_of((*[slice(None)] * (dim % table.ndim), index), table.ndim)
    return NotImplemented if reading is None else _read(context, func, table, reading)


@captures(torch.gather, Tensor.gather, axis=gathered)
def gather(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `gather(table, dim, index)`: a value for each place."""
    if kwargs.get("out") is not None:
        return NotImplemented
    table, dim, index = _selecting(*args, **kwargs)
    return _value_by_value(context, func, table, dim, index)


@captures(torch.take_along_dim, Tensor.take_along_dim, axis=taken_along)
def take_along_dim(
    context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Any:
    """Capture `take_along_dim(table, indices, dim)`, which broadcasts both."""
    if kwargs.get("out") is not None:
        return NotImplemented
    table, indices, dim = _taking(*args, **kwargs)
    if dim is None or table.ndim != indices.ndim or table.ndim == 0:
        return NotImplemented
    along = dim % table.ndim
    shape = [
        size if at == along else max(size, own)
        for at, (size, own) in enumerate(zip(indices.shape, table.shape, strict=True))
    ]
    axis = dim_of(context.axes.location(indices))
    if axis is None or shape[axis] != indices.shape[axis]:
        return NotImplemented
    wide = indices.expand(shape)
    if context.is_data(indices):
        context.axes.set(wide, context.axes.location(indices))
    return _value_by_value(context, func, table, dim, wide)


def _value_by_value(context: ForwardContext, func: Callable[..., Any], table: Tensor, dim: int, index: Tensor) -> Any:
    """Read one value for each place, at the place's own position on all dimensions but `dim`."""
    dims = dims_of(dim, max(table.ndim, 1))
    location = context.axes.location(index)
    # With the batch on another dimension each example has its own part of the table.
    if dims is None or table.ndim != index.ndim or table.ndim == 0 or dim_of(location) != min(dims):
        return NotImplemented
    places = []
    for at in range(table.ndim):
        if at in dims:
            places.append(index)
            continue
        own = torch.arange(index.shape[at] if table.shape[at] > 1 else 1, device=index.device)
        places.append(own.reshape([-1 if other == at else 1 for other in range(table.ndim)]))
    return _read(context, func, table, Reading(tuple(range(table.ndim)), tuple(places), (), 0))


def _read(context: ForwardContext, func: Callable[..., Any], table: Tensor, reading: Reading) -> Any:
    """Run the lookup; the dimensions that are only sliced come behind the places, and are then put in their order."""
    leaf = context.leaf(table)
    location = _location(context, reading.tensors)
    if leaf is None or location is None or leaf.value.numel() == 0:
        return NotImplemented
    places = [part if isinstance(part, Tensor) else torch.tensor(part, device=table.device) for part in reading.places]
    operator = Lookup(f"{func.__name__.strip('_')}({leaf.name})", leaf, location, reading.dims)
    out = capture(operator, context, leaf.value, *places)
    width = max(part.ndim for part in places)
    if any(part != slice(None) for part in reading.rest):
        out = out[(*[slice(None)] * width, *reading.rest)]
    if reading.before:
        out = out.movedim(tuple(range(width)), tuple(range(reading.before, reading.before + width)))
    return out


def _location(context: ForwardContext, places: Sequence[Tensor]) -> BatchLocation:
    """Return where the batch lies when the places are broadcast together; None where rows would meet other rows."""
    width = max(part.ndim for part in places)
    data = [part for part in places if context.is_data(part)]
    found = [(context.axes.location(part), part) for part in data]
    if not found:
        return None
    first, one = found[0]
    if isinstance(first, Whole):
        return first if all(location == first for location, _ in found) else None
    dim = dim_of(first)
    if dim is None:
        return None
    from_right = one.ndim - dim
    for location, part in found:
        own = dim_of(location)
        if own is None or part.ndim - own != from_right or isinstance(location, int) != isinstance(first, int):
            return None
    if isinstance(first, SegmentIds):
        if any(not first.same_rows(location) for location, _ in found if isinstance(location, SegmentIds)):
            return None
        constants = [part for part in places if not context.is_data(part) and part.ndim >= from_right]
        if any(part.shape[-from_right] != 1 for part in constants):
            return None
        return replace(first, dim=width - from_right)
    return width - from_right


def _selecting(
    input: Tensor, dim: int, index: Tensor, *, sparse_grad: bool = False, out: None = None
) -> tuple[Tensor, int, Tensor]:
    return input, dim, index


def _taking(
    input: Tensor, indices: Tensor, dim: int | None = None, *, out: None = None
) -> tuple[Tensor, Tensor, int | None]:
    return input, indices, dim
