"""The graph of a loop's own loss, read from the loss down to the model's outputs while a backward runs through it.

By then torch has let go of most tensors in it; operators, shapes and whole-number settings are still there. That is
enough to see which reductions a loss is made of and what each mean divides by, and not enough to see factors that the
loop multiplied or divided by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass, field
from typing import Any

from hushgrad.probing.loss_values import (
    Law,
    Rows,
    Shape,
    Term,
    Total,
    Unread,
    Value,
    axes_of,
    broadcast_axis,
    moved_axis,
)

MOST_NODES = 400
"""Larger graphs are not read; Python loops over the examples make such."""

LINEAR = {"Add", "Alias", "Clone", "MaskedFill", "Neg", "Rsub", "Sub", "ToCopy"}
COPYING = {"Alias", "Clone", "ToCopy"}
SCALING = {"Div", "Mul"}
SHIFTING = {"Add", "MaskedFill", "Mul", "Rsub", "Sub"}
"""Of an output and a constant: its values less a target, or without those that a mask takes out."""
NONLINEAR = {
    "Abs", "Atan", "Atan2", "Clamp", "ClampMax", "ClampMin", "Cos", "Cosh", "Elu", "Erf", "Erfc", "Exp", "Exp2", "Expm1",
    "Gelu", "Hardsigmoid", "Hardswish", "Hardtanh", "LeakyRelu", "Log", "Log10", "Log1P", "Log2", "LogSigmoid",
    "Logaddexp", "Maximum", "Minimum", "Mish", "Pow", "Reciprocal", "Relu", "Rsqrt", "Sigmoid", "Silu", "Sin", "Sinh",
    "Softplus", "Sqrt", "Tan", "Tanh", "Xlogy",
}  # fmt: skip
ELEMENTWISE = LINEAR | SCALING | NONLINEAR | {"Lerp", "NanToNum", "NativeDropout", "Sign", "Where"}
CRITERIA = {
    "BinaryCrossEntropy", "BinaryCrossEntropyWithLogits", "HuberLoss", "MseLoss", "SmoothL1Loss", "SoftMarginLoss",
}  # fmt: skip
ROW_CRITERIA = {"MultiMarginLoss", "MultilabelMarginLoss"}
"""One loss for each row of classes, on the last axis."""
ALONG = {"Amax", "Amin", "LinalgVectorNorm", "Logsumexp", "Max", "Mean", "Median", "Min", "Norm", "Prod", "Std", "Sum",
         "Var"}  # fmt: skip
VIEWS = {"ReshapeAlias", "Squeeze", "Unsqueeze", "UnsafeView", "View"}
PICKING = {"Index", "MaskedSelect", "Select", "Slice"}
DIVIDED_BY_NUMBER = "DivBackward1"
NONE, MEAN, SUM = 0, 1, 2
"""The `reduction` of a criterion, as torch numbers it."""

MIXES = (
    "the loss depends on the batch as a whole ({what}), so that the gradient of one example depends on the others. Give "
    "each example a loss of its own, from its own outputs and targets alone, and average those"
)


@dataclass(eq=False)
class Reading:
    """What was read of one loss.

    Attributes:
        value: what the loss is.
        loss: its number.
        faults: what makes it no mean and no sum of one loss for each example; the first one is told.
        broadcasts: the lengths that came about by broadcasting against something that is no output, and their shapes.
        divisors: for every mean, how many values of one example it is over, in the order of the graph.
        operators: the names of all operators, in that order.
        outputs: the model's outputs that the loss was made of, and what each is taken for.
        has_own: whether a part of the loss is not from losses that were examined elsewhere.
    """

    value: Value = None
    loss: Any = None
    faults: list[str] = field(default_factory=list)
    broadcasts: list[tuple[int, Shape]] = field(default_factory=list)
    divisors: list[float] = field(default_factory=list)
    operators: list[str] = field(default_factory=list)
    outputs: dict[tuple[int, int], Value] = field(default_factory=dict)
    has_own: bool = False


class LossGraph:
    """Reads the graphs of losses for a batch of `size` examples, at least two.

    Args:
        size: B.
        outputs: the model's outputs: the number of the node that made each, and which of the node's outputs it is.
        vouched: the numbers of nodes that made losses `[B]` which were examined elsewhere.
    """

    def __init__(self, size: int, outputs: Container[tuple[int, int]], vouched: Sequence[int]) -> None:
        self._size = size
        self._outputs = outputs
        self._vouched = vouched
        self._known: dict[tuple[Any, int], Value] = {}
        self._read = Reading()

    def read(self, root: Any) -> Reading:
        """Return what the loss whose node is `root` is made of."""
        self._read = Reading()
        self._known.clear()
        self._read.value = self._value(root, 0)
        return self._read

    def _value(self, node: Any, index: int) -> Value:
        key = (node, index)
        if key in self._known:
            return self._known[key]
        if len(self._read.operators) >= MOST_NODES:
            return Unread("it is made of too many operators")
        kind = type(node).__name__
        self._read.operators.append(kind)
        found: Value
        number = 0 if kind == "AccumulateGrad" else node._sequence_nr()
        if kind == "AccumulateGrad":
            found = None
        elif (number, index) in self._outputs:
            self._read.has_own = True
            found = self._layout((number, index), _shape(node, index))
            self._read.outputs[number, index] = found
        elif number in self._vouched:
            found = Rows(0)
        else:
            found = self._made(node, index, _operator(kind))
        self._known[key] = found
        return found

    def _layout(self, output: tuple[int, int], shape: Shape) -> Value:
        """Return what an output of the model of this shape is taken for."""
        if math.prod(shape) == 1:
            return Total((Term("model"),))
        if len(shape) > 2 and shape[0] == shape[1] == self._size:
            return Rows(None, raw=output)  # examples or positions first: not to be told
        for axis in (0, 1):
            if axis < len(shape) and shape[axis] == self._size:
                return Rows(axis, raw=output)
        if shape[0] % self._size == 0:
            return Rows(0, raw=output)
        return Unread("an output of the model has no axis with the batch")

    def _made(self, node: Any, index: int, operator: str) -> Value:
        edges = node.next_functions
        values = [None if part is None else self._value(part, place) for part, place in edges]
        if all(value is None for value in values):
            return None
        for value in values:
            if isinstance(value, Unread):
                return value
        shapes = [() if part is None else _shape(part, place) for part, place in edges]
        rule = _RULES.get(operator)
        if rule is None:
            return Unread(f"{operator} is not known to be for each example alone")
        return rule(self, operator, node, _shape(node, index), values, shapes)

    # One rule for each kind of operator ------------------------------------------------------------------------------

    def elementwise(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        totals = [value for value in values if isinstance(value, Total)]
        if totals:
            return self._of_totals(operator, node, values, totals)
        joined = self._joined(values, shapes, shape, keeps_law=operator in LINEAR | SCALING | {"Where"})
        given = [value for value in values if value is not None]
        if len(given) != 1 or not isinstance(given[0], Rows) or given[0].raw is None:
            return joined
        raw, shifted = given[0].raw, given[0].shifted
        if operator in COPYING:
            return joined._replace(raw=raw, shifted=shifted)
        if operator in SHIFTING:
            return joined._replace(raw=raw, shifted=True)
        if operator == "Abs":
            return joined._replace(law=Law("absolute", raw))
        if operator == "Pow" and node._saved_exponent == 2:
            return joined._replace(law=Law("square", raw))
        return joined

    def _of_totals(self, operator: str, node: Any, values: list[Value], totals: list[Total]) -> Value:
        alone = sum(value is not None for value in values) == 1
        if operator in LINEAR and alone:
            return totals[0]
        if operator in LINEAR and len(totals) == sum(value is not None for value in values):
            return Total(tuple(term for total in totals for term in total.terms))
        if operator in LINEAR:
            return Total((Term("other"),))  # the examples' own values and a sum over all of them
        if alone and (operator == "Mul" or (operator == "Div" and values[0] is not None)):
            return self._divided(node, totals[0]) if type(node).__name__ == DIVIDED_BY_NUMBER else totals[0].scaled()
        if operator in NONLINEAR | SCALING:
            self._fault(f"{operator.lower()} of a sum or mean over all examples")
        return Unread(f"{operator} of a sum over all examples")

    def _divided(self, node: Any, total: Total) -> Total:
        """Return sums divided by a number that the graph holds; torch's own criteria divide so, loops don't."""
        if not all(term.kind == "sum" and term.is_plain for term in total.terms):
            return total.scaled()
        self._read.divisors.append(node._saved_other / self._size)
        return Total(tuple(term._replace(kind="mean") for term in total.terms))

    def _joined(self, values: list[Value], shapes: list[Shape], shape: Shape, *, keeps_law: bool = False) -> Rows:
        """Return what an elementwise operator makes of values of single examples."""
        rows = [(value, old) for value, old in zip(values, shapes, strict=True) if isinstance(value, Rows)]
        axes: set[int | None] = set()
        grown: list[tuple[int, Shape] | None] = []
        for value, old in rows:
            if value.axis is None:
                axes.add(None)
                grown.append(None)
                continue
            axis, length = broadcast_axis(value.axis, old, shape, self._size)
            axes.add(axis)
            grown.append(value.grown if length is None else (length, shape))
        laws = {value.law for value, _ in rows}
        kept = laws.pop() if keeps_law and len(laws) == 1 else None
        known = axes - {None}
        if len(known) > 1:
            self._fault("each example is set against every other one")
        axis_of_all = known.pop() if len(axes) == 1 and known else None
        picked = any(value.picked for value, _ in rows)
        return Rows(axis_of_all, law=kept, grown=grown[0] if all(grown) else None, picked=picked)

    def criterion(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        if any(isinstance(value, Total) for value in values):
            self._fault("a criterion of a sum or mean over all examples")
            return Unread(operator)
        given = max(shapes, key=math.prod)
        if operator in ROW_CRITERIA:
            given = given[:-1]
        joined = self._joined(values, shapes, given)
        raw = [value for value in values if isinstance(value, Rows)]
        if len(raw) == 1 and raw[0].raw is not None:
            if operator == "MseLoss":
                joined = joined._replace(law=Law("square", raw[0].raw))
            elif operator == "BinaryCrossEntropyWithLogits" and not raw[0].shifted:
                joined = joined._replace(law=Law("bernoulli", raw[0].raw))
        return self._reduced(joined, node._saved_reduction, given)

    def negative_log_likelihood(
        self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]
    ) -> Value:
        value, given = values[0], shapes[0]
        if not isinstance(value, Rows) or len(given) < 2:
            return Unread("classes are chosen from a sum over the examples")
        if value.axis == 1:
            self._fault("the batch lies on the axis of classes")
            return Unread(operator)
        lengths = (given[0], *given[2:])
        rows = Rows(None if value.axis is None else max(value.axis - 1, 0), law=value.law)
        found = self._reduced(rows, node._saved_reduction, lengths)
        if isinstance(found, Total) and node._saved_reduction == MEAN:
            is_weighted = _is_there(node, "_saved_weight")
            found = Total(tuple(term._replace(counts=True, is_weighted=is_weighted) for term in found.terms))
        return found

    def _reduced(self, value: Value, reduction: int, shape: Shape) -> Value:
        if reduction == NONE or not isinstance(value, Rows):
            return value
        return self._over(value, shape, tuple(range(len(shape))), reduction == MEAN)

    def along(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        value, given = values[0], shapes[0]
        axes = axes_of(getattr(node, "_saved_dim", None), len(given))
        if operator in ("Mean", "Sum"):
            return self._over(value, given, axes, operator == "Mean")
        if isinstance(value, Total):
            if math.prod(given) > 1 or operator in ("LinalgVectorNorm", "Norm", "Logsumexp"):
                self._fault(f"{operator} of sums over all examples")
            return Unread(operator)
        return self._within(operator, value, given, axes)

    def _within(
        self, operator: str, value: Value, given: Shape, axes: tuple[int, ...], *, keeps: bool = False
    ) -> Value:
        """Return what an operator along some axes makes of the values of single examples."""
        if not isinstance(value, Rows):
            return Unread(operator)
        self._note_broadcast(value)
        if value.axis in axes or len(axes) == len(given):
            self._fault(f"{operator} over the batch")
            return Unread(operator)
        if value.axis is None:
            return Unread(f"{operator} where the batch has no axis of its own")
        return Rows(value.axis if keeps else _without(value.axis, axes))

    def _over(self, value: Value, given: Shape, axes: tuple[int, ...], is_mean: bool) -> Value:
        """Return the sum or mean over some axes."""
        count = math.prod(given[axis] for axis in axes)
        if isinstance(value, Total):
            if is_mean:
                self._read.divisors.append(count)
            return value
        if not isinstance(value, Rows):
            return value
        self._note_broadcast(value)
        if len(axes) == len(given) or value.axis in axes:
            if is_mean:
                self._read.divisors.append(count // self._size)
                if count % self._size:
                    self._read.faults.append(
                        f"the loss has a mean over {count} values of a batch of {self._size} records: not all of them "
                        f"count alike, and one record more or less changes what the others' gradients are divided by. "
                        f"Average within each example first, and then over all {self._size}"
                    )
            kind = "mean" if is_mean else "sum"
            return Total((Term(kind, counts=is_mean and value.picked, law=value.law),))
        if value.axis is None:
            return Unread("a sum over some axes, where the batch has no axis of its own")
        if is_mean:
            self._read.divisors.append(count)
        return Rows(_without(value.axis, axes), law=value.law)

    def over_classes(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        axes = axes_of(node._saved_dim, len(shapes[0]))
        value = values[0]
        found = self._within(operator, value, shapes[0], axes, keeps=True)
        if isinstance(found, Rows) and isinstance(value, Rows) and operator == "LogSoftmax" and value.raw is not None:
            is_known = not value.shifted
            return found._replace(law=Law("classes", value.raw, shapes[0][axes[0]]) if is_known else None)
        return found._replace(law=value.law) if isinstance(found, Rows) and isinstance(value, Rows) else found

    def view(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        value = values[0]
        if isinstance(value, Rows):
            return value._replace(axis=moved_axis(value.axis, shapes[0], shape, self._size))
        return value

    def turned(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        value = values[0]
        if not isinstance(value, Rows) or value.axis is None:
            return value
        rank = len(shape)
        if operator == "Permute":
            return value._replace(axis=axes_of(node._saved_dims, rank).index(value.axis))
        if operator == "T":
            return value._replace(axis=rank - 1 - value.axis)
        one, other = axes_of((node._saved_dim0, node._saved_dim1), rank)
        return value._replace(axis={one: other, other: one}.get(value.axis, value.axis))

    def expand(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        value = values[0]
        if not isinstance(value, Rows):
            return value
        return self._joined(values, shapes, shape)

    def picked(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        value, given = values[0], shapes[0]
        if isinstance(value, Total):
            return value
        if not isinstance(value, Rows):
            return value
        if operator in ("Select", "Slice") and value.axis is not None:
            (axis,) = axes_of(node._saved_dim, len(given))
            if axis == value.axis:
                return Unread("examples are picked") if operator == "Select" else value._replace(raw=None, picked=True)
            return value._replace(axis=value.axis - (operator == "Select" and axis < value.axis))
        kept = value.axis == 0 and len(shape) > 0 and shape[0] == given[0]
        return Rows(0 if kept else None, law=value.law, picked=not kept)

    def product(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        """Return what a product of matrices, or of stacks of them, is."""
        if any(isinstance(value, Total) for value in values):
            return Unread(f"{operator} of a sum over all examples")
        rank = len(max(shapes[-2:], key=len))
        rows = {place: value.axis for place, value in enumerate(values[-2:]) if isinstance(value, Rows)}
        outer = {place for place, axis in rows.items() if axis == rank - 2 + place}
        if None in rows.values() or any(len(shapes[-2:][place]) != rank for place in rows):
            return Unread(operator)
        if len(outer) == 2:
            self._fault("products of each example with every other one")
        elif len(outer) == len(rows) == 1:
            return Rows(next(iter(rows.values())))
        elif rank == 3 and set(rows.values()) == {0}:
            return Rows(0)
        return Unread(operator)

    def distances(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        rows = [value for value in values if isinstance(value, Rows)]
        if len(rows) == len(values) and all(value.axis == 0 for value in rows) and len(shapes[0]) == 2:
            self._fault("distances of each example from every other one")
        return Unread(operator)

    def stacked(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        given = [value for value in values if value is not None]
        totals = [value for value in given if isinstance(value, Total)]
        if len(totals) == len(given):
            return Total(tuple(term for total in totals for term in total.terms))
        axes = {value.axis for value in given if isinstance(value, Rows)}
        if totals or len(axes) != 1 or len(given) != len(values):
            return Unread(operator)
        axis, (along,) = axes.pop(), axes_of(node._saved_dim, len(shape))
        if axis is None or (operator == "Cat" and along == axis):
            return Rows(None)
        return Rows(axis + (operator == "Stack" and along <= axis))

    def connectionist(self, operator: str, node: Any, shape: Shape, values: list[Value], shapes: list[Shape]) -> Value:
        value = values[0]
        return Rows(0) if isinstance(value, Rows) and value.axis == 1 and len(shapes[0]) == 3 else Unread(operator)

    def _note_broadcast(self, value: Rows) -> None:
        if value.grown is not None:
            self._read.broadcasts.append(value.grown)

    def _fault(self, what: str) -> None:
        self._read.faults.append(MIXES.format(what=what))


Rule = Callable[[LossGraph, str, Any, Shape, list[Value], list[Shape]], Value]

_RULES: dict[str, Rule] = {
    **dict.fromkeys(ELEMENTWISE, LossGraph.elementwise),
    **dict.fromkeys(CRITERIA | ROW_CRITERIA, LossGraph.criterion),
    **dict.fromkeys(("NllLoss", "NllLoss2D"), LossGraph.negative_log_likelihood),
    **dict.fromkeys(ALONG, LossGraph.along),
    **dict.fromkeys(("Cumsum", "Gather", "LogSoftmax", "Softmax"), LossGraph.over_classes),
    **dict.fromkeys(VIEWS, LossGraph.view),
    **dict.fromkeys(("Permute", "T", "Transpose"), LossGraph.turned),
    **dict.fromkeys(PICKING, LossGraph.picked),
    **dict.fromkeys(("Addmm", "Baddbmm", "Bmm", "Mm"), LossGraph.product),
    **dict.fromkeys(("Cat", "Stack"), LossGraph.stacked),
    "Cdist": LossGraph.distances,
    "CtcLoss": LossGraph.connectionist,
    "Expand": LossGraph.expand,
}
_SUFFIX = re.compile(r"Backward\d*$")
_names: dict[str, str] = {}


def _operator(kind: str) -> str:
    found = _names.get(kind)
    if found is None:
        found = _names[kind] = _SUFFIX.sub("", kind)
    return found


def _shape(node: Any, index: int) -> Shape:
    return tuple(node._input_metadata[index].shape)


def _without(axis: int, axes: Sequence[int]) -> int:
    """Return where an axis lies after others were reduced."""
    return axis - sum(other < axis for other in axes)


def _is_there(node: Any, name: str) -> bool:
    """Whether an optional tensor of an operator was given; torch refuses to show one that it let go of."""
    try:
        return getattr(node, name) is not None
    except RuntimeError:
        return True
