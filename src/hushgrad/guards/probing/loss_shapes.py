"""What operators that move, choose and join values make of values of single examples, and of sums over them."""

from __future__ import annotations

from typing import Any

from hushgrad.guards.probing.loss_arithmetic import join_rows
from hushgrad.guards.probing.loss_values import (
    LossOperator,
    PerExample,
    Reading,
    Total,
    Unread,
    Value,
    axes_of,
    moved_axis,
)
from hushgrad.torch_internals import saved


def view(read: Reading, op: LossOperator) -> Value:
    """The same values in another shape."""
    value = op.values[0]
    if isinstance(value, PerExample):
        return value._replace(axis=moved_axis(value.axis, op.shapes[0], op.shape, read.size))
    return value


def turned(read: Reading, op: LossOperator) -> Value:
    """The same values with axes in another order."""
    value = op.values[0]
    if not isinstance(value, PerExample) or value.axis is None:
        return value
    rank = len(op.shape)
    if op.name == "Permute":
        return value._replace(axis=axes_of(saved(op.node, "dims"), rank).index(value.axis))
    if op.name == "T":
        return value._replace(axis=rank - 1 - value.axis)
    one, other = axes_of((saved(op.node, "dim0"), saved(op.node, "dim1")), rank)
    return value._replace(axis={one: other, other: one}.get(value.axis, value.axis))


def expand(read: Reading, op: LossOperator) -> Value:
    """Values repeated along an axis."""
    value = op.values[0]
    if not isinstance(value, PerExample):
        return value
    return join_rows(read, op.values, op.shapes, op.shape)


def picked(read: Reading, op: LossOperator) -> Value:
    """Some of the values."""
    value, given = op.values[0], op.shapes[0]
    if isinstance(value, Total):
        return value
    if not isinstance(value, PerExample):
        return value
    if op.name in ("Select", "Slice") and value.axis is not None:
        (axis,) = axes_of(saved(op.node, "dim"), len(given))
        if axis == value.axis and op.shape != given:
            if op.name == "Slice" and not given[axis] % read.size:
                read.cuts.append((_cut(op.node, given[axis]), given[axis]))
            return Unread("examples are picked") if op.name == "Select" else value._replace(raw=None, picked=True)
        return value._replace(axis=value.axis - (op.name == "Select" and axis < value.axis))
    kept = op.name != "MaskedSelect" and value.axis == 0 and len(op.shape) > 0 and op.shape[0] == given[0]
    return PerExample(0 if kept else None, law=value.law, picked=not kept)


def _cut(node: Any, length: int) -> range:
    """Return which places of an axis a slice holds; graphs keep negative numbers as unsigned ones."""
    start, stop = (place - 2**64 if place >= 2**63 else place for place in (saved(node, "start"), saved(node, "end")))
    return range(length)[slice(start, stop, saved(node, "step"))]


def product(read: Reading, op: LossOperator) -> Value:
    """Return what a product of matrices, or of stacks of them, is."""
    if any(isinstance(value, Total) for value in op.values):
        return Unread(f"{op.name} of a sum over all examples")
    rank = len(max(op.shapes[-2:], key=len))
    rows = {place: value.axis for place, value in enumerate(op.values[-2:]) if isinstance(value, PerExample)}
    outer = {place for place, axis in rows.items() if axis == rank - 2 + place}
    if None in rows.values() or any(len(op.shapes[-2:][place]) != rank for place in rows):
        return Unread(op.name)
    if len(outer) == 2:
        read.mixes("products of each example with every other one")
    elif len(outer) == len(rows) == 1:
        return PerExample(next(iter(rows.values())))
    elif rank == 3 and set(rows.values()) == {0}:
        return PerExample(0)
    return Unread(op.name)


def distances(read: Reading, op: LossOperator) -> Value:
    """Distances between the rows of two matrices."""
    rows = [value for value in op.values if isinstance(value, PerExample)]
    if len(rows) == len(op.values) and all(value.axis == 0 for value in rows) and len(op.shapes[0]) == 2:
        read.mixes("distances of each example from every other one")
    return Unread(op.name)


def stacked(read: Reading, op: LossOperator) -> Value:
    """Values beside each other."""
    given = [value for value in op.values if value is not None]
    totals = [value for value in given if isinstance(value, Total)]
    if len(totals) == len(given):
        return Total(tuple(term for total in totals for term in total.terms))
    axes = {value.axis for value in given if isinstance(value, PerExample)}
    if totals or len(axes) != 1 or len(given) != len(op.values):
        return Unread(op.name)
    axis, (along,) = axes.pop(), axes_of(saved(op.node, "dim"), len(op.shape))
    if axis is None or (op.name == "Cat" and along == axis):
        return PerExample(None)
    return PerExample(axis + (op.name == "Stack" and along <= axis))


def connectionist(read: Reading, op: LossOperator) -> Value:
    """The CTC loss of log-probabilities `[T, B, classes]`, one for each example."""
    value = op.values[0]
    return (
        PerExample(0)
        if isinstance(value, PerExample) and value.axis == 1 and len(op.shapes[0]) == 3
        else Unread(op.name)
    )
