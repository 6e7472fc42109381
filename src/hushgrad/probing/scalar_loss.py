"""The loop's own scalar loss: looked at by its graph, each time that a backward comes back to the model's outputs.

`loss.backward()` on a loss of the loop's own shows hushgrad nothing but gradients. While that backward runs, the loss is
still there, as an argument of `torch.autograd.backward`, and from it the operators down to the model's outputs.
What is surely no mean (or sum) of one loss for each example is refused, before anything is released; what cannot be
read is a condition of the guarantee.
"""

from __future__ import annotations

import math
import sys
import threading
from collections.abc import Callable, Iterator
from types import FrameType
from typing import Any, NamedTuple
from weakref import ref

import torch
from torch import Tensor, nn

from hushgrad.accounting.conditions import LOSS_OF_MODEL, OUTSIDE_CALL, OWN_LOSS, UNREAD_LOSS, Condition
from hushgrad.errors import CrossSampleLeakError, LossShapeError
from hushgrad.probing.counted_rows import Counted, CountedRows, counted_values
from hushgrad.probing.loss_graph import LossGraph, Reading
from hushgrad.probing.loss_values import Law, Rows, Shape, Term, Total, Unread
from hushgrad.probing.trees import tensors_at

_BACKWARD = torch.autograd.backward.__code__

KEPT_VALUES = 2**20
"""Outputs of at most so many values are kept until their backward; of larger ones, those that the loop keeps."""

CLOSE = 1e-4
"""A divisor this near to a number of parts, relative to it, is that number."""

SAME = 2e-3
"""Two divisors are the same if they differ by less than this, relative to the larger."""

MOST_KINDS = 64
"""Of so many kinds of losses it is remembered what they divided by."""

CURE = (
    "Give each example one loss, averaged over its own elements or tokens, and divide by nothing that the batch decides: "
    "engine.per_example(criterion), or engine.session.backward(losses) with losses of shape [B]"
)


Key = tuple[int, int]
"""An output of the model: the number of the node that made it, and which of the node's outputs it is."""


class _Output(NamedTuple):
    """An output of the model: how to get at its values, None where they are gone, and their version."""

    values: Callable[[], Tensor | None]
    version: int


class ScalarLoss:
    """Watches the backwards of one session for losses of the loop's own.

    Guarantee: no update is released from a scalar loss whose graph shows that it is not the declared mean or sum of
    one loss for each example.

    Args:
        model: the root; outermost calls of other modules are noted.
        loss_reduction: "mean" or "sum", as declared.
        is_accumulating: whether the backward that runs accumulates gradients of the model.
    """

    def __init__(self, model: nn.Module, loss_reduction: str, is_accumulating: Callable[[], bool]) -> None:
        self._model = model
        self._loss_reduction = loss_reduction
        self._is_accumulating = is_accumulating
        self.size: int | None = None
        """How many examples the item in work has; None where there is no loader, and no plain loss is taken."""
        self._thread = 0
        self._outputs: dict[Key, _Output] = {}
        self._vouched: list[int] = []
        self._looked_at: set[int] = set()
        self._conditions: dict[Condition, None] = {}
        self._divisors: dict[tuple[str, ...], tuple[float, ...]] = {}
        self._cleared: set[tuple[str, ...]] = set()
        self._lengths: dict[tuple[str, ...], set[int]] = {}

    # What the probe tells --------------------------------------------------------------------------------------------

    def forget(self) -> None:
        """The item is done, or another one begins."""
        self._outputs.clear()
        self._vouched.clear()
        self._looked_at.clear()

    def left(self, module: nn.Module, output: Any) -> None:
        """A captured forward that may be trained on returned `output`."""
        self._thread = threading.get_ident()
        if self.size is None and module is self._model:
            return  # only `session.backward` is taken, whose losses are examined
        for _, tensor in tensors_at(output):
            node = tensor.grad_fn
            if node is None:
                continue
            key = (node._sequence_nr(), tensor.output_nr)
            if key not in self._outputs:
                self._outputs[key] = _kept(tensor)
                hook = self._hook(key, module is not self._model)
                tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    def vouch(self, losses: Tensor) -> None:
        """These losses, `[B]`, are examined elsewhere."""
        if losses.grad_fn is not None:
            self._vouched.append(losses.grad_fn._sequence_nr())

    def close(self) -> None:
        """The item is about to be released: a backward that was not looked at is taken on trust."""
        if self.size is not None and not self._looked_at and not self._vouched:
            self._trust(UNREAD_LOSS)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What was taken on trust so far."""
        return tuple(self._conditions)

    def _trust(self, condition: Condition) -> None:
        self._conditions[condition] = None

    # The look --------------------------------------------------------------------------------------------------------

    def _hook(self, key: Key, is_part: bool) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if key not in self._outputs or not self._is_accumulating():
                return  # of an item that is over, or a gradient that is only asked for
            if is_part:
                self._trust(OUTSIDE_CALL)
            task = torch._C._current_graph_task_id()
            if self.size is not None and task not in self._looked_at:
                self._looked_at.add(task)
                self._look(key, gradient, self.size)

        return hook

    def _look(self, key: Key, gradient: Tensor, size: int) -> None:
        for loss, is_scaled in self._losses():
            root = loss.grad_fn
            if self._is_vouched(root):
                return
            reading = LossGraph(size, self._outputs, self._vouched).read(root)
            reading.loss = loss.detach()
            if key not in reading.outputs:
                continue  # a backward inside another one
            if is_scaled and isinstance(reading.value, Total):
                reading.value = reading.value.scaled()
            self._judge(reading, key, gradient, size)
            return
        self._trust(UNREAD_LOSS)

    def _losses(self) -> Iterator[tuple[Tensor, bool]]:
        """Yield each loss that a backward of the loop is at work on, and whether it was given a gradient.

        The innermost backward comes first. On a GPU this runs in a thread of torch's own, while the loop's waits.
        """
        frame: FrameType | None = sys._current_frames().get(self._thread)
        while frame is not None:
            if frame.f_code is _BACKWARD:
                local = frame.f_locals
                tensors, gradients = local["tensors"], local["grad_tensors"]
                given = (gradients,) if isinstance(gradients, Tensor) else gradients or ()
                for tensor in (tensors,) if isinstance(tensors, Tensor) else tensors:
                    if isinstance(tensor, Tensor) and tensor.grad_fn is not None:
                        yield tensor, any(part is not None for part in given)
            frame = frame.f_back

    def _is_vouched(self, root: Any) -> bool:
        """Whether a loss is a mean or sum of losses that were examined, and nothing else; most are."""
        edges = root.next_functions
        return len(edges) == 1 and edges[0][0] is not None and edges[0][0]._sequence_nr() in self._vouched

    def _judge(self, reading: Reading, key: Key, gradient: Tensor, size: int) -> None:
        if not reading.has_own:
            return
        if size == 1:  # one example alone: nothing that it could be mixed with
            self._trust(UNREAD_LOSS if isinstance(reading.value, Unread) else OWN_LOSS)
            return
        if reading.faults:
            raise CrossSampleLeakError(f"{reading.faults[0]}. {CURE}")
        kind = tuple(reading.operators)
        self._refuse_pairs(reading, kind, size)
        if not isinstance(reading.value, Total):
            self._require_steady(kind, tuple(reading.divisors))
            self._trust(UNREAD_LOSS)
            return
        self._refuse_other_reduction(reading.value)
        found = self._divisors_shown(reading, key, gradient, size)
        self._require_steady(kind, (*reading.divisors, *(found or ())))
        if any(term.kind == "model" for term in reading.value.terms):
            self._trust(LOSS_OF_MODEL)
        if any(term.kind != "model" for term in reading.value.terms):
            self._trust(UNREAD_LOSS if found is None else OWN_LOSS)

    def _refuse_pairs(self, reading: Reading, kind: tuple[str, ...], size: int) -> None:
        """Refuse values that were broadcast to the batch's length, unless this length was met in batches of others."""
        known = (
            self._lengths.setdefault(kind, set()) if len(self._lengths) < MOST_KINDS else self._lengths.get(kind, set())
        )
        for length, shape in reading.broadcasts:
            if length != size:
                known.add(length)
            elif length not in known:
                raise LossShapeError(
                    f"an output of the model was broadcast against the targets (to shape {list(shape)}, for {size} "
                    f"records), so that one example's loss contains another one's target. Give both the same shape"
                )

    def _refuse_other_reduction(self, total: Total) -> None:
        other = {"mean": "sum", "sum": "mean"}[self._loss_reduction]
        if any(term.kind == other and term.is_plain for term in total.terms):
            raise LossShapeError(
                f"loss_reduction is {self._loss_reduction!r}, and the loss (or a part of it) is a {other} over the batch: "
                f"each example's gradient would be scaled by the number of records in the batch, which is no constant. "
                f"Pass loss_reduction={other!r}, or make every part of the loss a {self._loss_reduction} over the batch"
            )

    def _divisors_shown(self, reading: Reading, key: Key, gradient: Tensor, size: int) -> tuple[float, ...] | None:
        """Return what the gradient shows of divisors that the graph does not hold; None where it does not show them.

        Raises:
            CrossSampleLeakError: not every example counts alike.
        """
        assert isinstance(reading.value, Total)
        terms = reading.value.terms
        hidden = [term for term in terms if _is_hidden(term)]
        if not hidden:
            return ()
        laws = {term.law for term in hidden}
        (law,) = laws if len(laws) == 1 else (None,)
        layout = reading.outputs.get(key)
        if law is None or law.output != key or len(reading.outputs) != 1 or not isinstance(layout, Rows):
            return None
        if layout.axis is None:
            return None
        counted: Counted | None
        if law.kind == "classes":
            rows = CountedRows(gradient, self._values(key), layout.axis, size, law.classes)
            needs_weight = any(term.is_weighted or not term.counts for term in hidden)
            counted = rows.found(with_weight=needs_weight, smoothed=len(terms) > 1) if rows.is_known else None
        else:
            loss = float(reading.loss) if len(terms) == 1 else math.nan
            counted = counted_values(law.kind, gradient, self._values(key), loss, layout.axis, size)
        if counted is None:
            return None
        self._refuse_uneven(counted, hidden)
        if all(term.counts for term in hidden):
            return (counted.total / size,)
        if counted.weight is None:
            return None
        return self._divisor(counted, law, tuple(gradient.shape), tuple(reading.operators), size)

    def _refuse_uneven(self, counted: Counted, hidden: list[Term]) -> None:
        """Refuse means over what was chosen of each example, if not of all the same number, or with other weights."""
        if any(term.counts for term in hidden) and counted.least != counted.most:
            raise CrossSampleLeakError(
                f"the loss is a mean over the targets (or values) that are not left out, of which the examples have "
                f"different numbers: one example changes what the others' gradients are divided by. {CURE}"
            )
        if any(term.is_weighted for term in hidden) and counted.weight is None:
            raise CrossSampleLeakError(
                f"the loss is a mean with class weights, which divides by the sum of the batch's weights: one example "
                f"changes what the others' gradients are divided by. {CURE}"
            )

    def _divisor(
        self, counted: Counted, law: Law, shape: Shape, kind: tuple[str, ...], size: int
    ) -> tuple[float, ...] | None:
        """Return what a sum is divided by, for each example of the batch, None where it cannot be compared.

        A sum that is divided by the number of its parts shows in the first batch in which examples have different
        numbers of them; a loss that was divided by something else there is not suspected again.
        """
        assert counted.weight is not None
        divisor = 1 / counted.weight
        if counted.least != counted.most and kind not in self._cleared:
            lengths = [1] if law.kind == "classes" else _products(shape)
            if any(abs(divisor * length - counted.total) < CLOSE * counted.total for length in lengths):
                raise CrossSampleLeakError(
                    f"the loss is divided by the number of tokens (or elements) in the batch, of which the examples "
                    f"have different numbers: one example changes what the others' gradients are divided by. {CURE}"
                )
            self._cleared.add(kind)
        return None if law.kind == "square" else (divisor / size,)

    def _values(self, key: Key) -> Tensor | None:
        output = self._outputs[key]
        values = output.values()
        return values if values is not None and values._version == output.version else None

    def _require_steady(self, kind: tuple[str, ...], divisors: tuple[float, ...]) -> None:
        """Refuse a loss that divides an example's part by other numbers than in an earlier batch."""
        if len(self._divisors) >= MOST_KINDS and kind not in self._divisors:
            return
        earlier = self._divisors.setdefault(kind, divisors)
        if len(earlier) < len(divisors):
            self._divisors[kind] = divisors
        for one, other in zip(earlier, divisors, strict=False):
            if abs(one - other) > SAME * max(one, other):
                raise CrossSampleLeakError(
                    f"the loss divides each example's part by another number than in an earlier batch (its longest "
                    f"record, its number of tokens, a size that is not this batch's), so that one example changes what "
                    f"the others' gradients are divided by. {CURE}"
                )


def _is_hidden(term: Term) -> bool:
    """Whether a reduction divides by a number that its graph does not show."""
    return term.counts or term.kind == "other" or (term.kind == "sum" and not term.is_plain)


def _products(shape: Shape) -> set[int]:
    """Return how many elements a part may have: products of some of the lengths of an output."""
    found = {1}
    for length in shape:
        found |= {length * other for other in found}
    return found


def _kept(tensor: Tensor) -> _Output:
    """Return a way to get at an output's values that keeps no large tensor alive."""
    if tensor.numel() <= KEPT_VALUES:
        values = tensor.detach()
        return _Output(lambda: values, tensor._version)
    return _Output(ref(tensor), tensor._version)
