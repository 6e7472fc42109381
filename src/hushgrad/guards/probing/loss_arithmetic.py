"""What arithmetic, criteria and reductions make of values of single examples, and of sums over them.

A rule marks as a fault only what surely lets one example's gradient depend on another. What it does not know is unread.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hushgrad.guards.probing.loss_values import (
    Law,
    LossOperator,
    PerExample,
    Reading,
    Shape,
    Term,
    Total,
    Unread,
    Value,
    axes_of,
    broadcast_axis,
)
from hushgrad.torch_internals import saved

LINEAR = {"Add", "Alias", "Clone", "MaskedFill", "Neg", "Rsub", "Sub", "ToCopy"}
COPYING = {"Alias", "Clone", "ToCopy"}
SCALING = {"Div", "Mul"}
SHIFTING = {"Add", "MaskedFill", "Mul", "Rsub", "Sub"}
"""Of an output and a constant: its values less a target, or without those that a mask takes out."""
NONLINEAR = {
    "Abs", "Atan", "Atan2", "Clamp", "ClampMax", "ClampMin", "Cos", "Cosh", "Elu", "Erf", "Erfc", "Exp", "Exp2",
    "Expm1", "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Log10", "Log1P", "Log2", "LogSigmoid",
    "Logaddexp", "Maximum", "Minimum", "Mish", "Pow", "Reciprocal", "Relu", "Rsqrt", "Sigmoid", "Silu", "Sin", "Sinh",
    "Softplus", "Sqrt", "Tan", "Tanh", "Xlogy",
}  # fmt: skip
ROW_CRITERIA = {"MultiMarginLoss", "MultilabelMarginLoss"}
"""One loss for each row of classes, on the last axis."""
DIVIDED_BY_NUMBER = "DivBackward1"
NONE, MEAN, SUM = 0, 1, 2
"""The `reduction` of a criterion, as torch numbers it."""


def elementwise(read: Reading, op: LossOperator) -> Value:
    """Arithmetic and functions of single values."""
    totals = [value for value in op.values if isinstance(value, Total)]
    if totals:
        return _of_totals(read, op, totals)
    joined = join_rows(read, op.values, op.shapes, op.shape, keeps_law=op.name in LINEAR | SCALING | {"Where"})
    given = [value for value in op.values if value is not None]
    if len(given) != 1 or not isinstance(given[0], PerExample) or given[0].raw is None:
        return joined
    raw, shifted = given[0].raw, given[0].shifted
    if op.name in COPYING:
        return joined._replace(raw=raw, shifted=shifted)
    if op.name in SHIFTING:
        return joined._replace(raw=raw, shifted=True)
    if op.name == "Abs":
        return joined._replace(law=Law("absolute", raw))
    if op.name == "Pow" and saved(op.node, "exponent") == 2:
        return joined._replace(law=Law("square", raw))
    return joined


def _of_totals(read: Reading, op: LossOperator, totals: list[Total]) -> Value:
    alone = sum(value is not None for value in op.values) == 1
    if op.name in LINEAR and alone:
        return totals[0]
    if op.name in LINEAR and len(totals) == sum(value is not None for value in op.values):
        return Total(tuple(term for total in totals for term in total.terms))
    if op.name in LINEAR:
        return Total((Term("other"),))  # the examples' own values and a sum over all of them
    if alone and (op.name == "Mul" or (op.name == "Div" and op.values[0] is not None)):
        return _divided(read, op.node, totals[0]) if type(op.node).__name__ == DIVIDED_BY_NUMBER else totals[0].scaled()
    if op.name in NONLINEAR | SCALING:
        read.mixes(f"{op.name.lower()} of a sum or mean over all examples")
    return Unread(f"{op.name} of a sum over all examples")


def _divided(read: Reading, node: Any, total: Total) -> Total:
    """Return sums divided by a number that the graph holds; torch's own criteria divide so, loops don't."""
    if not all(term.kind == "sum" and term.is_plain for term in total.terms):
        return total.scaled()
    read.divisors.append(saved(node, "other") / read.size)
    return Total(tuple(term._replace(kind="mean") for term in total.terms))


def join_rows(
    read: Reading, values: list[Value], shapes: list[Shape], shape: Shape, *, keeps_law: bool = False
) -> PerExample:
    """Return what an elementwise operator makes of values of single examples."""
    rows = [(value, old) for value, old in zip(values, shapes, strict=True) if isinstance(value, PerExample)]
    axes: set[int | None] = set()
    grown: list[tuple[int, Shape] | None] = []
    for value, old in rows:
        if value.axis is None:
            axes.add(None)
            grown.append(None)
            continue
        axis, length = broadcast_axis(value.axis, old, shape, read.size)
        axes.add(axis)
        grown.append(value.grown if length is None else (length, shape))
    laws = {value.law for value, _ in rows}
    kept = laws.pop() if keeps_law and len(laws) == 1 else None
    known = axes - {None}
    if len(known) > 1:
        read.mixes("each example is set against every other one")
    axis_of_all = known.pop() if len(axes) == 1 and known else None
    picked = any(value.picked for value, _ in rows)
    return PerExample(axis_of_all, law=kept, grown=grown[0] if all(grown) else None, picked=picked)


def criterion(read: Reading, op: LossOperator) -> Value:
    """A criterion of values and targets, with its own reduction."""
    if any(isinstance(value, Total) for value in op.values):
        read.mixes("a criterion of a sum or mean over all examples")
        return Unread(op.name)
    given = max(op.shapes, key=math.prod)
    if op.name in ROW_CRITERIA:
        given = given[:-1]
    joined = join_rows(read, op.values, op.shapes, given)
    raw = [value for value in op.values if isinstance(value, PerExample)]
    if len(raw) == 1 and raw[0].raw is not None:
        if op.name == "MseLoss":
            joined = joined._replace(law=Law("square", raw[0].raw))
        elif op.name == "BinaryCrossEntropyWithLogits" and not raw[0].shifted:
            joined = joined._replace(law=Law("bernoulli", raw[0].raw))
    return _reduced(read, joined, saved(op.node, "reduction"), given)


def negative_log_likelihood(read: Reading, op: LossOperator) -> Value:
    """The choice of a class for each row, with its reduction; a mean divides by the weights of what was counted."""
    value, given = op.values[0], op.shapes[0]
    if not isinstance(value, PerExample) or len(given) < 2:
        return Unread("classes are chosen from a sum over the examples")
    if value.axis == 1:
        read.mixes("the batch lies on the axis of classes")
        return Unread(op.name)
    lengths = (given[0], *given[2:])
    rows = PerExample(None if value.axis is None else max(value.axis - 1, 0), law=value.law)
    found = _reduced(read, rows, saved(op.node, "reduction"), lengths)
    if isinstance(found, Total) and saved(op.node, "reduction") == MEAN:
        is_weighted = _was_given(op.node, "weight")
        found = Total(tuple(term._replace(counts=True, is_weighted=is_weighted) for term in found.terms))
    return found


def _reduced(read: Reading, value: Value, reduction: int, shape: Shape) -> Value:
    if reduction == NONE or not isinstance(value, PerExample):
        return value
    return _over(read, value, shape, tuple(range(len(shape))), reduction == MEAN)


def along(read: Reading, op: LossOperator) -> Value:
    """A sum, a mean or another reduction over some axes or all."""
    value, given = op.values[0], op.shapes[0]
    axes = axes_of(saved(op.node, "dim", None), len(given))
    if op.name in ("Mean", "Sum"):
        return _over(read, value, given, axes, op.name == "Mean")
    if isinstance(value, Total):
        if math.prod(given) > 1 or op.name in ("LinalgVectorNorm", "Norm", "Logsumexp"):
            read.mixes(f"{op.name} of sums over all examples")
        return Unread(op.name)
    return _within(read, op.name, value, given, axes)


def _within(
    read: Reading, operator: str, value: Value, given: Shape, axes: tuple[int, ...], *, keeps: bool = False
) -> Value:
    """Return what an operator along some axes makes of the values of single examples."""
    if not isinstance(value, PerExample):
        return Unread(operator)
    read.note_broadcast(value)
    if value.axis in axes or len(axes) == len(given):
        read.mixes(f"{operator} over the batch")
        return Unread(operator)
    if value.axis is None:
        return Unread(f"{operator} where the batch has no axis of its own")
    return PerExample(value.axis if keeps else _without(value.axis, axes))


def _over(read: Reading, value: Value, given: Shape, axes: tuple[int, ...], is_mean: bool) -> Value:
    """Return the sum or mean over some axes."""
    count = math.prod(given[axis] for axis in axes)
    if isinstance(value, Total):
        if is_mean:
            read.divisors.append(count)
        return value
    if not isinstance(value, PerExample):
        return value
    read.note_broadcast(value)
    if len(axes) == len(given) or value.axis in axes:
        if is_mean:
            if not count % read.size:
                read.divisors.append(count // read.size)
            else:
                read.uneven.append(
                    f"the loss has a mean over {count} values of a batch of {read.size} examples: not all of them "
                    f"count alike, and one example more or less changes what the others' gradients are divided by"
                )
        kind = "mean" if is_mean else "sum"
        return Total((Term(kind, counts=is_mean and value.picked, law=value.law),))
    if value.axis is None:
        return Unread("a sum over some axes, where the batch has no axis of its own")
    if is_mean:
        read.divisors.append(count)
    return PerExample(_without(value.axis, axes), law=value.law)


def over_classes(read: Reading, op: LossOperator) -> Value:
    """An operator along one axis that keeps it."""
    axes = axes_of(saved(op.node, "dim"), len(op.shapes[0]))
    value = op.values[0]
    found = _within(read, op.name, value, op.shapes[0], axes, keeps=True)
    if (
        isinstance(found, PerExample)
        and isinstance(value, PerExample)
        and op.name == "LogSoftmax"
        and value.raw is not None
    ):
        is_known = not value.shifted
        return found._replace(law=Law("classes", value.raw, op.shapes[0][axes[0]]) if is_known else None)
    return found._replace(law=value.law) if isinstance(found, PerExample) and isinstance(value, PerExample) else found


def _without(axis: int, axes: Sequence[int]) -> int:
    """Return where an axis lies after others were reduced."""
    return axis - sum(other < axis for other in axes)


def _was_given(node: Any, name: str) -> bool:
    """Whether an optional tensor of an operator was given; torch refuses to show one that it let go of."""
    try:
        return saved(node, name) is not None
    except RuntimeError:
        return True
