"""Rules that say on which axis of an operator's output the batch lies; None wherever that is not certain.

`None` is always safe: a parameter used on such a tensor is refused. A wrong axis would attribute one example's gradient
to another, so every rule is tested against what really changes when one example does.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from numbers import Integral
from typing import Any

import torch
from torch import Tensor

Axis = int | None

# The stride that marks the batch on a tensor whose other strides are 0. No size or step of a view multiplies to it.
MARK = 1_000_003

IN_PLACE_OPERATORS = ["add", "sub", "mul", "div", "truediv", "floordiv", "mod", "pow", "and", "or", "xor", "lshift"]
IN_PLACE_DUNDERS = {f"__i{name}__" for name in [*IN_PLACE_OPERATORS, "rshift"]} | {"__setitem__"}


def changes_in_place(func: Callable[..., Any]) -> bool:
    """Return whether an operator by its name changes its first argument."""
    return _is_name_of_a_change(func.__name__)


@cache
def _is_name_of_a_change(name: str) -> bool:
    if name.startswith("__"):
        return name in IN_PLACE_DUNDERS
    return any(part.endswith("_") for part in name.split("."))


MAIN_ARGUMENTS = ("input", "self", "tensor", "x", "a", "x1", "input1")
"""What torch's operators and initialisers call their first argument; some take NumPy's names, too."""


def main_argument(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """Return the argument that an operator is about, which it changes if it works in place; None if there is none."""
    if args:
        return args[0]
    return next((kwargs[name] for name in MAIN_ARGUMENTS if name in kwargs), None)


@dataclass(slots=True, eq=False)  # not frozen, which takes three times as long to make: there is one for each call
class OperatorCall:
    """One call: its arguments, those that descend from the batch with their known axes, and B.

    `images` keeps what the call gave on a stand-in of its main argument, for the rules of its several outputs.
    """

    func: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    sources: Sequence[Tensor]
    axes: Sequence[int]
    batch_size: int
    images: list[Any] | None = field(default=None, init=False)

    @property
    def first(self) -> Any:
        """The operator's main argument."""
        return self.args[0] if self.args else main_argument(self.args, self.kwargs)

    def argument(self, position: int, name: str, default: Any = None) -> Any:
        """Return an argument by its position or its name."""
        return self.args[position] if len(self.args) > position else self.kwargs.get(name, default)

    def axis_of(self, value: Any) -> Axis:
        """Return the batch axis of an argument; None if it does not descend from the batch."""
        return next((axis for source, axis in zip(self.sources, self.axes, strict=True) if source is value), None)

    def only(self, value: Any) -> Axis:
        """Return the axis of an argument, provided that no other argument descends from the batch."""
        if len(self.sources) == 1:
            return self.axes[0] if self.sources[0] is value else None
        return self.axis_of(value) if all(source is value for source in self.sources) else None

    def shared_axis(self) -> Axis:
        """Return the axis that all arguments of the batch share; they then have equally many dimensions too."""
        axes = {(source.ndim, axis) for source, axis in zip(self.sources, self.axes, strict=True)}
        return next(iter(axes))[1] if len(axes) == 1 else None

    def from_right(self) -> int | None:
        """Return the axis of the batch counted from the last dimension, as broadcasting counts, if all agree."""
        distances = {source.ndim - axis for source, axis in zip(self.sources, self.axes, strict=True)}
        return next(iter(distances)) if len(distances) == 1 else None


AxisRule = Callable[[OperatorCall, Tensor, int], Axis]
"""Takes a call, one of its outputs and the index of that output; returns the axis of the batch in it, or None."""


ROW_WISE: set[AxisRule] = set()
"""Rules of operators that work along other dimensions than the batch's, and treat all its places alike."""


def _row_wise(rule: AxisRule) -> AxisRule:
    ROW_WISE.add(rule)
    return rule


def _kept(axis: Axis, source: Tensor, out: Tensor, dim: int) -> Axis:
    """Return `dim` if the output really has the source's batch there."""
    if axis is None or not 0 <= dim < out.ndim or out.shape[dim] != source.shape[axis]:
        return None
    return dim


def dims_of(value: Any, ndim: int) -> set[int] | None:
    """Return dimensions as non-negative numbers; None if `value` is not one or several."""
    values = value if isinstance(value, (tuple, list)) else (value,)
    if not values or any(isinstance(dim, bool) or not isinstance(dim, Integral) for dim in values):
        return None
    return {int(dim) % ndim for dim in values}


def elementwise(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """Each value of the output comes from values at the same place of the broadcast inputs."""
    distance = call.from_right()
    return None if distance is None else _kept(call.axes[0], call.sources[0], out, out.ndim - distance)


def like_first(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """The output has the first argument's shape and, if anything, its values; others give a dtype or device only."""
    axis = call.axis_of(call.first)
    return None if axis is None else _kept(axis, call.first, out, axis)


def copied(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`new_tensor`: the values of its argument; the tensor that it is called on lends a dtype only."""
    data = call.argument(1, "data")
    axis = call.axis_of(data)
    return None if axis is None else _kept(axis, data, out, axis)


def viewed(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """A view of the first argument: the same call on a tensor without memory, whose strides name the batch."""
    x = call.first
    axis = call.axis_of(x)
    if axis is None:
        return None
    strides = [MARK if dim == axis else 0 for dim in range(x.ndim)]
    probe = torch.empty_strided(x.shape, strides, dtype=x.dtype, device="meta")
    if call.args:
        result = call.func(probe, *call.args[1:], **call.kwargs)
    else:
        result = call.func(**{key: probe if value is x else value for key, value in call.kwargs.items()})
    image = result[output_index] if isinstance(result, (tuple, list)) else result
    if not isinstance(image, Tensor) or image.shape != out.shape:
        return None
    found = [dim for dim in range(image.ndim) if image.stride(dim) == MARK and image.shape[dim] == x.shape[axis]]
    return found[-1] if found else None


def unsqueezed(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`unsqueeze_`: seen when it has happened, a new dimension before or behind the batch's."""
    axis, dims = call.axis_of(call.first), dims_of(call.argument(1, "dim"), out.ndim)
    return None if axis is None or dims is None else axis + (min(dims) <= axis)


def exchanged(first: str, second: str) -> AxisRule:
    """`transpose_` and its kin: seen when it has happened, two dimensions in each other's place."""

    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        axis = call.axis_of(call.first)
        one = dims_of(call.argument(1, first, 0), out.ndim)
        two = dims_of(call.argument(2, second, 1), out.ndim)
        if axis is None or one is None or two is None:
            return None
        swapped = {min(one): min(two), min(two): min(one)}
        return swapped.get(axis, axis)

    return rule


def reshaped(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """Same values in the same row-major order; positions behind the batch may be folded into it or out of it."""
    x = call.first
    axis = call.axis_of(x)
    if axis is None or out.ndim == 0 or out.numel() != x.numel():
        return None
    if not out.numel():  # no values at all: nothing moves but the dimensions behind the batch
        return axis if out.shape[: axis + 1] == x.shape[: axis + 1] else None
    if call.batch_size == 1:  # every place belongs to the one example; keep to the axis as long as it is there
        return axis if axis < out.ndim and out.shape[axis] == x.shape[axis] else 0
    before = math.prod(x.shape[:axis])
    for dim in range(out.ndim):
        if out.shape[dim] % call.batch_size == 0 and math.prod(out.shape[:dim]) == before:
            return dim
    return None


def indexed(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`x[...]`: views by their strides; index tensors only behind the batch, or beside `arange(B)` on it."""
    x = call.first
    index = call.args[1] if isinstance(call.args[1], tuple) else (call.args[1],)
    if all(part is None or part is Ellipsis or is_basic(part) for part in index):
        return viewed(call, out, output_index) if call.axis_of(x) is not None else None
    axis = call.axis_of(x)
    if axis is None or any(isinstance(part, bool) or part is None for part in index):
        return None
    parts = _without_ellipsis(index, x.ndim)
    if parts is None:
        return None
    if all(isinstance(part, slice) and part == slice(None) for part in parts[: axis + 1]) and len(parts) > axis:
        return axis if call.only(x) is not None and _advanced_are_adjacent(parts) and out.ndim > axis else None
    return _picked_per_example(call, parts, out) if axis == 0 else None


def is_basic(part: Any) -> bool:
    """Return whether a part of an index is a number or a slice."""
    return isinstance(part, slice) or (isinstance(part, Integral) and not isinstance(part, bool))


def _without_ellipsis(index: tuple[Any, ...], ndim: int) -> list[Any] | None:
    used = sum(part.ndim if isinstance(part, Tensor) and part.dtype == torch.bool else 1 for part in index)
    positions = [position for position, part in enumerate(index) if part is Ellipsis]
    known = all(part is Ellipsis or isinstance(part, (Tensor, list)) or is_basic(part) for part in index)
    if len(positions) > 1 or not known:
        return None
    if not positions:
        return list(index)
    at = positions[0]
    return [*index[:at], *[slice(None)] * (ndim - used + 1), *index[at + 1 :]]


def _advanced_are_adjacent(parts: list[Any]) -> bool:
    """Whether the result's indexed dimensions stay in place; index tensors apart from each other move to the front."""
    positions = [position for position, part in enumerate(parts) if not isinstance(part, slice)]
    return positions[-1] - positions[0] == len(positions) - 1


def _picked_per_example(call: OperatorCall, parts: list[Any], out: Tensor) -> Axis:
    """`x[arange(B), positions]`: each example picks among its own rows."""
    rows = parts[0]
    advanced = [part for part in parts if isinstance(part, Tensor)]
    if not isinstance(rows, Tensor) or rows.ndim == 0 or rows.dtype == torch.bool or not _advanced_are_adjacent(parts):
        return None
    if len(advanced) != sum(not isinstance(part, slice) for part in parts) or rows.numel() != call.batch_size:
        return None
    width = max(part.ndim for part in advanced)
    if rows.ndim != width or rows.shape[0] != call.batch_size or call.first.shape[0] != call.batch_size:
        return None
    if not torch.equal(rows.flatten(), torch.arange(call.batch_size, device=rows.device)):
        return None
    for part in advanced:
        own = call.axis_of(part)
        if own is not None and part.ndim - own != width:
            return None
    return _kept(0, call.first, out, 0)


def along(position: int, name: str = "dim", default: Any = None) -> AxisRule:
    """Works along some dimensions and keeps all of them; the batch survives unless it is among them."""

    @_row_wise
    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        axis, source = call.shared_axis(), call.sources[0]
        dims = dims_of(call.argument(position, name, call.kwargs.get("axis", default)), source.ndim)
        if axis is None or dims is None or axis in dims or out.ndim < source.ndim:
            return None
        return _kept(axis, source, out, axis)

    return rule


def flipped(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`flip`, whose dimensions may come as a list or one by one."""
    dims = call.kwargs.get("dims", call.args[1:])
    dims = dims[0] if len(dims) == 1 and isinstance(dims[0], (tuple, list)) else dims
    axis = call.only(call.first)
    along_dims = dims_of(tuple(dims), call.first.ndim)
    return None if axis is None or along_dims is None or axis in along_dims else _kept(axis, call.first, out, axis)


def reduced(position: int, default: Any = None) -> AxisRule:
    """Removes some dimensions, or keeps them with size 1; checked against the shape that came out."""

    @_row_wise
    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        x, axis = call.first, call.shared_axis()
        wanted = call.argument(position, "dim", call.kwargs.get("axis", default))
        if isinstance(wanted, Tensor):
            return elementwise(call, out, output_index)
        dims = dims_of(wanted, x.ndim) if isinstance(x, Tensor) and x.ndim else None
        if axis is None or dims is None or axis in dims or call.axis_of(x) is None:
            return None
        if list(out.shape) == [1 if dim in dims else size for dim, size in enumerate(x.shape)]:
            return axis
        if list(out.shape) == [size for dim, size in enumerate(x.shape) if dim not in dims]:
            return axis - sum(dim < axis for dim in dims)
        return None

    return rule


_along_second, _reduced_second = along(2), reduced(2)


def quantiles(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`quantile`, which puts a dimension in front where it is asked for several."""
    asked = call.argument(1, "q")
    if not isinstance(asked, Tensor) or asked.ndim != 1:
        return _reduced_second(call, out, output_index)
    if any(source is asked for source in call.sources) or out.shape[0] != asked.shape[0]:
        return None
    axis = _reduced_second(call, out[0], output_index)
    return None if axis is None else axis + 1


def concatenated(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`cat` along a dimension that is not the batch's."""
    axis, dims = call.shared_axis(), dims_of(call.argument(1, "dim", call.kwargs.get("axis", 0)), out.ndim)
    return None if axis is None or dims is None or axis in dims else _kept(axis, call.sources[0], out, axis)


def stacked(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`stack`: a new dimension before or behind the batch's."""
    axis, dims = call.shared_axis(), dims_of(call.argument(1, "dim", 0), out.ndim)
    if axis is None or dims is None:
        return None
    return _kept(axis, call.sources[0], out, axis + (min(dims) <= axis))


def repeated(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`repeat` and `tile` with one copy along the batch."""
    x = call.first
    axis = call.only(x)
    return None if axis is None else _kept(axis, x, out, axis + out.ndim - x.ndim)


def interleaved(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`repeat_interleave`: each row so many times behind itself, so that its example's rows stay together.

    How often may differ from row to row behind the batch, not on its dimension.
    """
    x, repeats = call.first, call.argument(1, "repeats")
    axis, dims = call.only(x), dims_of(call.argument(2, "dim"), max(x.ndim, 1))
    if axis is None or dims is None or out.ndim != x.ndim:
        return None
    if axis not in dims:
        return _kept(axis, x, out, axis)
    times = isinstance(repeats, Integral) and not isinstance(repeats, bool)
    return axis if times and out.shape[axis] == x.shape[axis] * int(repeats) and out.shape[axis] else None


def padded(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`F.pad` that adds nothing to the batch's dimension, whether it names it or not."""
    x = call.first
    axis, pads = call.only(x), call.argument(1, "pad")
    if axis is None or not isinstance(pads, (tuple, list)):
        return None
    at = 2 * (x.ndim - 1 - axis)  # pairs are named from the last dimension on
    own = pads[at : at + 2]
    if any(isinstance(size, bool) or not isinstance(size, Integral) or size != 0 for size in own):
        return None
    return _kept(axis, x, out, axis)


def before_last(count: int) -> AxisRule:
    """Works on the last `count` dimensions and keeps the number of them; the batch lies before."""

    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        axis = call.shared_axis()
        if axis is None or call.axis_of(call.first) is None or axis >= call.first.ndim - count:
            return None
        return _kept(axis, call.first, out, axis) if out.ndim == call.first.ndim else None

    return rule


def batch_first(ndim: int | None = None) -> AxisRule:
    """Works on batches on axis 0 of a first argument with `ndim` dimensions; no other argument is data."""

    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        x = call.first
        if call.only(x) != 0 or x.ndim < 2 or (ndim is not None and x.ndim != ndim):
            return None
        return _kept(0, x, out, 0)

    return rule


def frozen_batch_norm(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`batch_norm` on frozen statistics; on the batch's own it mixes the examples."""
    return None if call.argument(5, "training", False) else batch_first()(call, out, output_index)
