"""Parameters that meet the batch by broadcasting: added, multiplied, concatenated.

The parameter is given a batch dimension first (a view, no memory). Whatever elementwise operator follows then returns
its gradient per example by itself, so one rule serves all of them, in place or not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, Whole, dim_of
from hushgrad.capture.axes.rules import concatenated, elementwise, main_argument, stacked
from hushgrad.capture.axes.table import SPACES
from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.operator import ForwardContext, Operator, Recorded, capture
from hushgrad.capture.operators.registration import captures
from hushgrad.capture.torch_names import in_place_forms, named
from hushgrad.capture.uses import UsePool
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.rows import Rows

NAMES = """
    add sub subtract rsub mul multiply div divide true_divide pow maximum minimum fmax fmin where addcmul addcdiv lerp
    atan2 hypot logaddexp xlogy fmod remainder copysign clamp clip eq ne lt le gt ge
    __add__ __radd__ __sub__ __rsub__ __mul__ __rmul__ __truediv__ __rtruediv__ __div__ __rdiv__ __pow__ __rpow__
    __eq__ __ne__ __lt__ __le__ __gt__ __ge__
"""
IN_PLACE_NAMES = "copy_ __iadd__ __isub__ __imul__ __itruediv__ __idiv__ __ipow__"
"""Elementwise operators in which a parameter meets data; the first of them also have forms in place, `name_`."""


@dataclass(frozen=True, eq=False)
class Expand(Operator):
    """A leaf seen as `[..., n, ...]` with n rows of the batch on `axis`; every row is the leaf itself."""

    shows_leaf: ClassVar[bool] = True
    name: str
    leaf: TrackedTensor
    axis: BatchLocation
    shape: tuple[int, ...]

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the expanded view."""
        lead = [1] * (len(self.shape) - self.leaf.value.ndim)
        return self.leaf.value.reshape((*lead, *self.leaf.value.shape)).expand(self.shape), ()

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """There are no inputs."""
        return ()

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record each example's rows of the gradient as its own."""
        examples = pool.examples(gradient, self.axis, self.name)
        if examples.ndim > gradient.ndim and not isinstance(self.axis, Whole):  # positions folded into the batch
            examples = examples.sum(1)
        ids = self.leaf.ids
        if ids is not None:
            return _looked_up(self.leaf, ids.reshape(1, -1).expand(examples.shape[0], -1), examples)
        return [(self.leaf, Dense(examples.reshape(examples.shape[0], *self.leaf.value.shape)))]


def _looked_up(leaf: TrackedTensor, ids: Tensor, gradients: Tensor) -> Recorded:
    """Record gradients of looked-up rows for the table itself: `ids [B, ...]`, `gradients [B, ..., d]`."""
    (table,) = leaf.roots
    ids_BT = ids.reshape(ids.shape[0], -1).long()
    return [(table, Rows(ids_BT, gradients.reshape(*ids_BT.shape, -1), table.value.shape[0]))]


@dataclass(frozen=True, eq=False)
class OwnRows(Operator):
    """A leaf that has a row for each example already: row i of `axis` meets example i only."""

    shows_leaf: ClassVar[bool] = True
    name: str
    leaf: TrackedTensor
    axis: int

    def forward(self, *inputs: Tensor | None) -> tuple[Tensor, tuple[Tensor | None, ...]]:
        """Return the leaf's values."""
        return self.leaf.value.view_as(self.leaf.value), ()

    def input_gradients(
        self, saved: tuple[Tensor | None, ...], gradient: Tensor, needed: Sequence[bool]
    ) -> Sequence[Tensor | None]:
        """There are no inputs."""
        return ()

    def record(self, pool: UsePool, saved: tuple[Tensor | None, ...], gradient: Tensor) -> Recorded:
        """Record a gradient per example that is zero outside the example's own rows."""
        examples = pool.examples(gradient, self.axis, self.name)
        if self.leaf.ids is not None and self.axis < self.leaf.ids.ndim:
            return _looked_up(self.leaf, pool.examples(self.leaf.ids, self.axis, self.name), examples)
        if examples.ndim == gradient.ndim:
            examples = examples.unsqueeze(1)
        batch, rows = examples.shape[:2]
        own = examples.new_zeros(batch, *examples.shape)
        own.diagonal(dim1=0, dim2=1).copy_(examples.movedim(0, -1))
        return [(self.leaf, Dense(own.reshape(batch, batch * rows, *examples.shape[2:]).movedim(1, self.axis + 1)))]


def with_batch(context: ForwardContext, leaf: TrackedTensor, data: Tensor, func_name: str) -> Any:
    """Return a tensor that broadcasts like the leaf against `data` and records per example; or NotImplemented."""
    location = context.axes.location(data)
    if isinstance(location, Whole):
        return capture(Expand(f"{func_name}({leaf.name})", leaf, location, tuple(leaf.value.shape)), context)
    axis = dim_of(location)
    if axis is None:
        return NotImplemented
    rows, from_right = data.shape[axis], data.ndim - axis
    shape = list(leaf.value.shape)
    shape = [1] * (from_right - len(shape)) + shape
    dim = len(shape) - from_right
    name = f"{func_name}({leaf.name})"
    if shape[dim] == rows and leaf.value.ndim >= from_right and rows > 1:
        return NotImplemented if isinstance(location, SegmentIds) else capture(OwnRows(name, leaf, dim), context)
    if shape[dim] != 1:
        return NotImplemented
    shape[dim] = rows
    own = replace(location, dim=dim) if isinstance(location, SegmentIds) else dim
    return capture(Expand(name, leaf, own, tuple(shape)), context)


@captures(*named(NAMES, SPACES), axis=elementwise)
def broadcast(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Run an elementwise call with each leaf given a batch dimension."""
    values = [*args, *kwargs.values()]
    data = [value for value in values if context.is_data(value)]
    if not data or not _aligned(context, data):
        return NotImplemented
    widest = max(data, key=lambda tensor: tensor.ndim)
    replaced: dict[int, Any] = {}
    for value in values:
        leaf = context.leaf(value)
        if leaf is not None and id(value) not in replaced:
            expanded = with_batch(context, leaf, widest, func.__name__)
            if expanded is NotImplemented:
                return NotImplemented
            replaced[id(value)] = expanded
    new_args = [replaced.get(id(value), value) for value in args]
    return func(*new_args, **{key: replaced.get(id(value), value) for key, value in kwargs.items()})


def _aligned(context: ForwardContext, data: list[Tensor]) -> bool:
    """Whether broadcasting lets row i of the batch meet row i only."""
    locations = [context.axes.location(value) for value in data]
    first = locations[0]
    if isinstance(first, Whole):
        return all(location == first for location in locations)
    if isinstance(first, SegmentIds):
        return all(
            isinstance(location, SegmentIds)
            and first.same_rows(location)
            and value.ndim - location.dim == data[0].ndim - first.dim
            for value, location in zip(data, locations, strict=True)
        )
    axes = [context.axes.get(value) for value in data]
    return len({None if axis is None else value.ndim - axis for value, axis in zip(data, axes, strict=True)}) == 1


@captures(*in_place_forms(NAMES, SPACES), *named(IN_PLACE_NAMES, SPACES), axis=elementwise)
def _in_place(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    leaf = context.leaf(main_argument(args, kwargs))
    if leaf is not None:
        raise UncoveredParameterUseError(
            f"changes parameter {leaf.name!r} in place inside the forward",
            where=func.__name__,
            cure="Compute a new tensor instead, or make the change outside the forward, under torch.no_grad()",
        )
    return broadcast(context, func, args, kwargs)


@captures(Tensor.__setitem__, axis=None)  # the mode follows what was written itself
def _assigned(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `x[index] = leaf`: each example's part of x receives the leaf."""
    target, index, value = args
    leaf = context.leaf(value)
    if leaf is None or not context.is_data(target) or context.leaf(target) is not None:
        return NotImplemented
    axis = context.axes.get(target)
    if axis is None:
        return NotImplemented
    if isinstance(index, Tensor) and index.dtype == torch.bool:
        written = _assigned_by_mask(context, func, target, index, leaf, axis)
        if written is not NotImplemented:
            return written
    part, own = context.axes.part(target, axis, index)
    location: BatchLocation = own
    if own is None:
        part, location = context.axes.rows_at(target, index)
    if location is None:
        return NotImplemented
    context.axes.set(part, location)
    expanded = with_batch(context, leaf, part, "__setitem__")
    if expanded is NotImplemented:
        return NotImplemented
    func(target, index, expanded)
    return None


def _assigned_by_mask(
    context: ForwardContext, func: Callable[..., Any], target: Tensor, mask: Tensor, leaf: TrackedTensor, axis: int
) -> Any:
    """Capture `x[mask] = leaf` with one vector for all rows that a mask of the batch selects."""
    rows_behind = target.ndim - mask.ndim
    is_aligned = axis < mask.ndim and (not context.is_data(mask) or context.axes.get(mask) == axis)
    if (
        not is_aligned
        or leaf.value.ndim > rows_behind + 1
        or leaf.value.shape[: leaf.value.ndim - rows_behind] not in ((), (1,))
    ):
        return NotImplemented
    expanded = with_batch(context, leaf, target, "__setitem__")
    if expanded is NotImplemented:
        return NotImplemented
    func(target, mask, expanded.expand(target.shape)[mask])
    return None


@captures(torch.stack, axis=stacked)
@captures(torch.cat, torch.concat, torch.concatenate, axis=concatenated)
def _joined(context: ForwardContext, func: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Capture `torch.cat` and `torch.stack` of data with leaves that have a row for each example."""
    parts = args[0] if args else kwargs.get("tensors")
    if not isinstance(parts, (tuple, list)):
        return NotImplemented
    data = [part for part in parts if context.is_data(part)]
    if not data or any(context.axes.get(part) != context.axes.get(data[0]) for part in data):
        return NotImplemented
    axis = context.axes.get(data[0])
    dim = args[1] if len(args) > 1 else kwargs.get("dim", kwargs.get("axis", 0))
    if axis is None or (func is not torch.stack and dim % data[0].ndim == axis):
        return NotImplemented
    joined = []
    for part in parts:
        leaf = context.leaf(part)
        if leaf is None:
            joined.append(part)
            continue
        if part.ndim != data[0].ndim or part.shape[axis] != data[0].shape[axis]:
            return NotImplemented
        joined.append(capture(OwnRows(f"{func.__name__}({leaf.name})", leaf, axis), context))
    return func(joined, *args[1:], **{key: value for key, value in kwargs.items() if key != "tensors"})
