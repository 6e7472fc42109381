"""The graph of a loop's own loss, read from the loss down to the model's outputs while a backward runs through it.

By then torch has let go of most tensors in it; operators, shapes and whole-number settings are still there. That is
enough to see which reductions a loss is made of and what each mean divides by, and not enough to see factors that the
loop multiplied or divided by.
"""

from __future__ import annotations

import math
import re
from collections.abc import Container, Iterator, Mapping, Sequence
from typing import Any

import torch

from hushgrad.guards.probing.loss_arithmetic import MEAN
from hushgrad.guards.probing.loss_rules import RULES
from hushgrad.guards.probing.loss_values import (
    Key,
    LossOperator,
    PerExample,
    Reading,
    Shape,
    Term,
    Total,
    Unread,
    Value,
)
from hushgrad.torch_internals import dtype_of_output, saved, sequence_number, shape_of_output

MOST_NODES = 400
"""Larger graphs are not read; Python loops over the examples make such."""

HOOKED = "BackwardHookFunctionBackward"
"""The operator that full backward hooks of a module put behind its outputs: each is handed on as it is."""

RECOMPUTED = "CheckpointFunctionBackward"
"""A checkpointed part of a model (use_reentrant=True), whose own graph is made when its backward runs."""

NARROW = (torch.bfloat16, torch.float16)

TWICE_DIVIDED = {"HuberLoss", "MseLoss", "SmoothL1Loss"}
"""Criteria whose mean multiplies by a rounded inverse of the number of values, so that exact halves are lost."""

_SUFFIX = re.compile(r"Backward\d*$")
_names: dict[str, str] = {}


class LossGraph:
    """Reads the graphs of losses for a batch of `size` examples.

    Args:
        size: B.
        outputs: the model's outputs.
        vouched: what is known of values that were examined elsewhere, by their keys.
        anchor: what every captured operator of the model hangs on.
        opens_scalars: whether scalars that the model returned are read down to its operators.
    """

    def __init__(
        self,
        size: int,
        outputs: Container[Key],
        vouched: Mapping[Key, Value],
        anchor: Any,
        *,
        opens_scalars: bool = False,
    ) -> None:
        self._size = size
        self._opens_scalars = opens_scalars
        self._anchor = anchor
        self._outputs = outputs
        self._vouched = vouched
        self._known: dict[tuple[Any, int], Value] = {}
        self._read = Reading(size)

    def read(self, root: Any, index: int = 0) -> Reading:
        """Return what the loss whose node is `root` is made of."""
        self._read = Reading(self._size)
        self._read.value = self._value(root, index)
        self._known.clear()
        is_cut_off = len(self._read.operators) >= MOST_NODES
        if is_cut_off:
            self._read.has_inner = reaches_inside(root, self._outputs, self._anchor)
        self._weigh_cuts(is_cut_off)
        return self._read

    def _weigh_cuts(self, is_cut_off: bool) -> None:
        """Means over parts of the batch may weigh all examples alike if together they hold all of them."""
        read = self._read
        if not read.uneven:
            return
        if is_cut_off or read.is_cut_whole():
            read.value = Unread("it is made of means over parts of the batch")
            read.divisors.clear()  # of parts, whose numbers follow how the batch is cut
        else:
            read.faults.extend(read.uneven)

    def _value(self, node: Any, index: int) -> Value:
        key = (node, index)
        if key in self._known:
            return self._known[key]
        if len(self._read.operators) >= MOST_NODES:
            return Unread("it is made of too many operators")
        kind = type(node).__name__
        self._read.operators.append(kind)
        is_leaf = kind == "AccumulateGrad"
        self._read.has_leaf |= is_leaf
        found = None if is_leaf else self._made(node, index, kind, sequence_number(node))
        self._known[key] = found
        return found

    def _made(self, node: Any, index: int, kind: str, number: int) -> Value:
        if (number, index) in self._outputs and not (self._opens_scalars and _shape(node, index) == ()):
            self._read.has_own = True
            found = self._output((number, index), _shape(node, index))
            self._read.outputs[number, index] = found
            return found
        if (number, index) in self._vouched:
            self._read.has_vouched = True
            return self._vouched[number, index]
        edges = node.next_functions
        if kind == HOOKED and edges[index][0] is not None:
            return self._value(*edges[index])
        if _is_inside(kind, edges, self._anchor):
            self._read.has_inner = True
            return Unread("a part comes from inside the model")
        values = [None if part is None else self._value(part, place) for part, place in edges]
        if all(value is None for value in values):
            return None
        name = operator_name(node)
        found = self._by_rule(node, index, name, values)
        self._note_rounding(node, index, name, found)
        return found

    def _by_rule(self, node: Any, index: int, name: str, values: list[Value]) -> Value:
        for value in values:
            if isinstance(value, Unread):
                return value
        rule = RULES.get(name)
        if rule is None:
            return Unread(f"{name} is not known to be for each example alone")
        shapes = [() if part is None else _shape(part, place) for part, place in node.next_functions]
        return rule(self._read, LossOperator(name, node, _shape(node, index), values, shapes))

    def _note_rounding(self, node: Any, index: int, name: str, found: Value) -> None:
        read, is_narrow = self._read, dtype_of_output(node, index) in NARROW
        if isinstance(found, PerExample):
            read.has_narrow |= is_narrow
            return
        divides_twice = name in TWICE_DIVIDED and saved(node, "reduction") == MEAN
        read.is_rounded |= is_narrow or divides_twice
        if name == "Mean" and isinstance(found, Total) and math.prod(_shape(*node.next_functions[0])) > 1:
            read.means.append(node)

    def _output(self, output: Key, shape: Shape) -> Value:
        """Return what an output of the model of this shape is taken for."""
        if math.prod(shape) == 1:
            return Total((Term("model"),))
        if len(shape) > 2 and shape[0] == shape[1] == self._size:
            return PerExample(None, raw=output)  # examples or positions first: not to be told
        for axis in (0, 1):
            if axis < len(shape) and shape[axis] == self._size:
                return PerExample(axis, raw=output)
        if shape[0] % self._size == 0:
            return PerExample(0, raw=output)
        return Unread("an output of the model has no axis with the batch")


def operator_name(node: Any) -> str:
    """Return the name of the operator that a node is of, without what tells its variants apart."""
    kind = type(node).__name__
    return _names.get(kind) or _names.setdefault(kind, _SUFFIX.sub("", kind))


def reaches_inside(root: Any, outputs: Container[Key], anchor: Any) -> bool:
    """Return whether a loss comes from an operator of the model on a way that passes none of its outputs."""
    return any(
        _is_inside(type(node).__name__, node.next_functions, anchor) for node, _ in _way(root, 0, outputs, anchor)
    )


def is_narrow(root: Any, outputs: Container[Key], anchor: Any) -> bool:
    """Return whether gradients of single examples pass through 16 bits on their way from a loss to the model.

    Between the loss and the outputs of the model, that is: of what is inside of it capture knows. A scalar's own
    gradient is the same for all examples, and no division has come before it.
    """
    narrow = [
        (node, index)
        for node, index in _way(root, 0, outputs, anchor)
        if dtype_of_output(node, index) in NARROW and _shape(node, index)
    ]
    return any(_leads_to_model(node, index, outputs, anchor) for node, index in narrow)


def _leads_to_model(node: Any, index: int, outputs: Container[Key], anchor: Any) -> bool:
    for part, place in _way(node, index, outputs, anchor):
        if _is_inside(type(part).__name__, part.next_functions, anchor):
            return True
        if any(below is not None and (sequence_number(below), at) in outputs for below, at in _below(part, place)):
            return True
    return False


def _way(root: Any, index: int, outputs: Container[Key], anchor: Any) -> Iterator[tuple[Any, int]]:
    """Yield what lies between a value and the model: down to its outputs, and to operators inside of it."""
    known, waiting = set(), [(root, index)]
    while waiting:
        place = node, number = waiting.pop()
        if node is None or place in known or (sequence_number(node), number) in outputs:
            continue
        known.add(place)
        yield place
        if not _is_inside(type(node).__name__, node.next_functions, anchor):
            waiting.extend(_below(node, number))


def _below(node: Any, index: int) -> Sequence[tuple[Any, int]]:
    """Return what an output of a node was made of."""
    edges: Sequence[tuple[Any, int]] = node.next_functions
    return [edges[index]] if type(node).__name__ == HOOKED else edges


def _is_inside(kind: str, edges: Sequence[tuple[Any, int]], anchor: Any) -> bool:
    return kind == RECOMPUTED or any(part is anchor for part, _ in edges)


def _shape(node: Any, index: int) -> Shape:
    return shape_of_output(node, index)
