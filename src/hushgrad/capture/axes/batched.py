"""Axis rules of operators that torch defines on one matrix, image or row, and runs for each of a batch of them."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from hushgrad.capture.axes.rules import Axis, AxisRule, OperatorCall, dims_of, elementwise


def _kept(call: OperatorCall, out: Tensor, axis: Axis) -> Axis:
    """Return `axis` if the output has as many places there as the data have on the batch's."""
    size = call.sources[0].shape[call.axes[0]]
    return axis if axis is not None and 0 <= axis < out.ndim and out.shape[axis] == size else None


def only_first(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """Each value comes from that of the first argument at the same place; what else is given is no data."""
    return None if call.only(call.first) is None else elementwise(call, out, output_index)


def is_member(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`isin`: told of each value alone, but for the sorted way of `assume_unique`, which looks at its neighbours."""
    return None if call.kwargs.get("assume_unique", False) else only_first(call, out, output_index)


def matrices(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """Works on each matrix of the last two dimensions; what comes out has the dimensions before them in front."""
    x = call.first
    axis = call.only(x)
    return None if axis is None or axis >= x.ndim - 2 else _kept(call, out, axis)


def one_each(*names: str) -> AxisRule:
    """Takes the batch on axis 0 of the first arguments, called so, and of no others: losses, samplers of images."""

    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        given = [call.argument(position, name) for position, name in enumerate(names)]
        is_known = all(any(source is value for value in given) for source in call.sources)
        first = given[0]
        if not is_known or any(call.axes) or not isinstance(first, Tensor) or first.ndim < 2:
            return None
        return _kept(call, out, 0)

    return rule


def compared(position: int, name: str, default: int) -> AxisRule:
    """Broadcasts two arguments and reduces one dimension: distances and similarities of vectors."""

    def rule(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
        pair = [value for value in (*call.args, *call.kwargs.values()) if isinstance(value, Tensor)]
        distance, ndim = call.from_right(), max((value.ndim for value in pair), default=0)
        dims = dims_of(call.argument(position, name, default), max(ndim, 1))
        if distance is None or dims is None or len(dims) != 1:
            return None
        (dim,) = dims
        axis = ndim - distance
        if axis == dim:
            return None
        return _kept(call, out, axis if out.ndim == ndim else axis - (dim < axis))

    return rule


def pairwise(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`pairwise_distance`, which reduces the last dimension and may keep it."""
    distance, first = call.from_right(), call.argument(0, "x1")
    second = call.argument(1, "x2")
    if distance is None or distance == 1 or not isinstance(first, Tensor) or not isinstance(second, Tensor):
        return None
    return _kept(call, out, max(first.ndim, second.ndim) - distance)


def searched(call: OperatorCall, out: Tensor, output_index: int) -> Axis:
    """`searchsorted`: values among constant boundaries, or row by row among the boundaries of the same example."""
    values: Any = call.argument(1, "input", call.kwargs.get("self"))
    axis = call.shared_axis()
    for source, own in zip(call.sources, call.axes, strict=True):
        if source is not values and own >= source.ndim - 1:
            return None
    return _kept(call, out, axis)
