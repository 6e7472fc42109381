"""The loop's own scalar loss: looked at by its graph, each time that a backward comes back to the model's outputs.

`loss.backward()` on a loss of the loop's own shows hushgrad nothing but gradients. While that backward runs, the loss
is still there, as an argument of `torch.autograd.backward`, and from it the operators down to the model's outputs.
What is surely no mean (or sum) of one loss for each example is refused, before anything is released; what cannot be
read is a condition of the guarantee.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence, Set
from contextlib import AbstractContextManager
from types import FrameType
from typing import Any, NamedTuple
from weakref import ref

from torch import Tensor, nn

from hushgrad.accounting.conditions import INNER_LOSS, OUTSIDE_CALL, UNREAD_LOSS, Condition, not_read
from hushgrad.guards.probing.loop_line import loop_line
from hushgrad.guards.probing.loss_cuts import Cut, cuts_of
from hushgrad.guards.probing.loss_graph import LossGraph, is_narrow, operator_name, reaches_inside
from hushgrad.guards.probing.loss_judge import LossJudge
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.loss_values import Key, PerExample, Term, Total, Unread, Value
from hushgrad.guards.probing.trees import tensors_at
from hushgrad.thread_frames import frames_of_threads
from hushgrad.torch_internals import current_graph_task, losses_of_backward, sequence_number, version

KEPT_VALUES, FEW_VALUES = 2**24, 2**20
"""Outputs of at most so many values are kept until their first backward, few ones until the item is done; of larger
outputs there are those that the loop keeps. Most loops keep them all."""


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
        findings_told: makes what is raised inside known to the session.
        programs: is told of the losses.
    """

    def __init__(
        self,
        model: nn.Module,
        loss_reduction: str,
        is_accumulating: Callable[[], bool],
        findings_told: Callable[[], AbstractContextManager[None]],
        programs: LossPrograms,
    ) -> None:
        self._findings_told = findings_told
        self._model = model
        self._judge = LossJudge(loss_reduction)
        self._is_accumulating = is_accumulating
        self._programs = programs
        self._anchor: Any = None
        self.size: int | None = None
        """How many examples the item in work has; None where there is no loader, and no plain loss is taken."""
        self._thread = 0
        self._outputs: dict[Key, _Output] = {}
        self._vouched: dict[Key, Value] = {}
        self._reduction = {"mean": "Mean", "sum": "Sum"}[loss_reduction]
        self._looked_at: set[int] = set()
        self._factors: dict[int, float] = {}  # by backward
        self._own: set[int] = set()
        self._saw_unvouched = False
        self.saw_narrow = False
        """Whether gradients of the item in work passed through 16 bits between its losses and the model's outputs."""
        self._conditions: dict[Condition, None] = {}

    # What the probe tells --------------------------------------------------------------------------------------------

    def join(self, anchor: Any) -> None:
        """Take the node that every captured operator of the model hangs on."""
        self._anchor = anchor

    def forget(self) -> None:
        """The item is done, or another one begins."""
        self._outputs.clear()
        self._vouched.clear()
        self._looked_at.clear()
        self._factors.clear()
        self._own.clear()
        self.saw_narrow = self._saw_unvouched = False

    def told_losses(self, sessions: Set[int]) -> int | None:
        """Return of how many backwards the losses are examined ones, one for each example; None where one is not."""
        return None if self._saw_unvouched else len(self._looked_at | sessions)

    def left(self, module: nn.Module, output: Any) -> None:
        """A captured forward that may be trained on returned `output`."""
        # Without a loader only `session.backward` is taken, whose losses are examined.
        is_watched = self.size is not None or module is not self._model
        self._thread = threading.get_ident()
        for _, tensor in tensors_at(output):
            node = tensor.grad_fn
            if node is None:
                continue
            key = _key(tensor)
            if key in self._outputs:
                continue
            self._outputs[key] = _kept(tensor) if is_watched else _Output(_gone, version(tensor))
            if is_watched:
                hook = self._hook(key, module is not self._model)
                tensor.register_hook(hook)  # type: ignore[no-untyped-call]

    def vouch(self, losses: Tensor, asked: Sequence[Tensor]) -> None:
        """These losses, `[B]`, are examined elsewhere, as to the model's outputs and to gradients that were asked for.

        Without a loader nobody writes down what the loop makes of these gradients, and they count as inner values.
        """
        if losses.grad_fn is not None:
            self._vouched[_key(losses)] = PerExample(0)
            known = {*self._outputs, *map(_key, asked)} if asked and self.size is not None else self._outputs
            if reaches_inside(losses.grad_fn, known, self._anchor):
                self._conditions[INNER_LOSS] = None

    def vouch_total(self, loss: Tensor) -> None:
        """This scalar is the sum of losses that were examined; another gradient than it expects is refused."""
        if loss.grad_fn is not None:
            self._vouched[_key(loss)] = Total((Term("vouched"),))

    def cuts(self, loss: Tensor) -> list[Cut]:
        """Return where the gradient of a loss of the loop's own may be multiplied before it is rounded.

        Empty if that is unclear, and where a part of the loss is of losses that were examined: they are held to the
        gradient that they expect.
        """
        if self.size is None or loss.grad_fn is None or loss.ndim:
            return []
        size = self.size

        def graph() -> LossGraph:
            return LossGraph(size, self._outputs, self._vouched, self._anchor, opens_scalars=True)

        return cuts_of(loss.grad_fn, loss.output_nr, graph)

    def multiplied(self, factor: float) -> None:
        """The gradient of the loss was multiplied in the backward that runs, at its cuts."""
        self._factors[current_graph_task()] = factor
        self._programs.multiplied(factor)

    def is_narrow(self, losses: Tensor) -> bool:
        """Return whether gradients of these losses pass through 16 bits before they come to the model's outputs."""
        return losses.grad_fn is not None and is_narrow(losses.grad_fn, self._outputs, self._anchor)

    @property
    def saw_own(self) -> bool:
        """Whether a backward of the item in work had a loss with a part that is no sum of the session's own.

        Losses whose gradient was multiplied do not count, nor does what `vouch_total` was told of.
        """
        return not self._own <= self._factors.keys()

    def close(self) -> None:
        """The item is about to be released: a backward that was not looked at is taken on trust."""
        if self.size is not None and not self._looked_at and not self._vouched:
            self._conditions[not_read("its backward was not seen")] = None

    def doubt(self, why: str) -> None:
        """Take note of why the program of the item's own loss could not be told; "" where it could."""
        if why:
            self._conditions[not_read(why)] = None

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What was taken on trust so far."""
        return tuple(self._conditions)

    # The look --------------------------------------------------------------------------------------------------------

    def _hook(self, key: Key, is_part: bool) -> Callable[[Tensor], None]:
        loss = ref(self)  # no hook holds what a graph may be held by

        def hook(gradient: Tensor) -> None:
            known = loss()
            if known is not None:
                known._came(key, gradient, is_part)

        return hook

    def _came(self, key: Key, gradient: Tensor, is_part: bool) -> None:
        """A backward has come to an output with this gradient."""
        if key not in self._outputs or not self._is_accumulating():
            return  # of an item that is over, or a gradient that is only asked for
        if is_part:
            self._conditions[OUTSIDE_CALL] = None
        task = current_graph_task()
        if self.size is not None and task not in self._looked_at:
            self._looked_at.add(task)
            with self._findings_told():
                self._look(key, gradient, self.size)
            if gradient.numel() > FEW_VALUES:
                self._outputs[key] = self._outputs[key]._replace(values=_gone)

    def _look(self, key: Key, gradient: Tensor, size: int) -> None:
        line, task = "", current_graph_task()
        if self._programs.are_written_down:
            self._programs.runs([loss for losses, _, _ in self._losses() for loss in losses])
        if task in self._factors:  # this output may be the loss itself, and come before
            gradient = gradient.float() / self._factors[task]
        for losses, weights, line in self._losses():
            nodes = [loss.grad_fn for loss in losses]
            if all(self._is_vouched(loss) for loss in losses):
                if any(map(_is_weight, weights)):
                    self._trust_weights(losses, weights, line)
                elif not all(_is_sessions(self._vouched.get(_key(loss))) for loss in losses):
                    self._own.add(task)
                self._look_for_16_bits(losses)
                return
            readings = [LossGraph(size, self._outputs, self._vouched, self._anchor).read(node) for node in nodes]
            if not any(key in reading.outputs or reading.has_vouched for reading in readings):
                continue  # a backward inside another one
            self._look_for_16_bits(losses)
            for loss, weight, reading in zip(losses, weights, readings, strict=True):
                is_own = not _is_sessions(reading.value)
                self._saw_unvouched |= is_own
                if is_own:
                    self._own.add(task)
                reading.loss = loss.detach()
                if is_own:  # what it makes of the session's scalars they are held to by themselves
                    self._programs.scalar(loss, weight)
                if isinstance(reading.value, Total) and any(weight is not None for weight in weights):
                    reading.value = reading.value.scaled()
                shown = (key, gradient, self._values(key)) if len(losses) == 1 else None
                for condition in self._judge.judge(reading, shown):
                    self._conditions[_located(condition, reading.value, line)] = None
            return
        self._saw_unvouched = True
        self._own.add(task)
        self._conditions[not_read("the loss of a backward was not found")] = None

    def _trust_weights(self, losses: list[Tensor], weights: list[Any], line: str) -> None:
        """Take note that examined losses were given gradients by the loop: what these follow, no graph shows."""
        self._saw_unvouched = True
        self._own.add(current_graph_task())
        self._conditions[not_read(f"backward was given a gradient for it; {line}")] = None
        for loss, weight in zip(losses, weights, strict=True):
            self._programs.scalar(loss, weight)

    def _look_for_16_bits(self, losses: list[Tensor]) -> None:
        self.saw_narrow = self.saw_narrow or any(self.is_narrow(loss) for loss in losses)

    def _losses(self) -> Iterator[tuple[list[Tensor], list[Any], str]]:
        """Yield the losses of each backward that is at work, the gradients that they were given, and its line.

        The innermost backward comes first. On a CPU this runs in the thread that called backward, which need not be
        that of the forward; on a GPU in one of torch's own, while the loop's waits.
        """
        here = threading.get_ident()
        running = frames_of_threads()
        for thread in dict.fromkeys((here, self._thread)):
            yield from _backwards_above(running.get(thread))

    def _is_vouched(self, loss: Tensor) -> bool:
        """Whether a loss is the declared mean or sum of losses that were examined, and nothing else; most are."""
        if isinstance(self._vouched.get(_key(loss)), Total):
            return True
        root: Any = loss.grad_fn
        if operator_name(root) != self._reduction:
            return False
        [(part, index)] = root.next_functions
        return part is not None and (sequence_number(part), index) in self._vouched

    def _values(self, key: Key) -> Tensor | None:
        output = self._outputs[key]
        values = output.values()
        return values if values is not None and version(values) == output.version else None


def _is_sessions(value: Value) -> bool:
    return isinstance(value, Total) and all(term.kind == "vouched" for term in value.terms)


def _key(tensor: Tensor) -> Key:
    return sequence_number(tensor.grad_fn), tensor.output_nr


def _backwards_above(frame: FrameType | None) -> Iterator[tuple[list[Tensor], list[Any], str]]:
    while frame is not None:
        if (arguments := losses_of_backward(frame)) is not None:
            tensors, gradients = arguments
            roots = [tensors] if isinstance(tensors, Tensor) else [*tensors]
            given = [gradients] if isinstance(gradients, Tensor) else [*(gradients or [None] * len(roots))]
            pairs = zip(roots, given, strict=False)
            known = [(one, weight) for one, weight in pairs if isinstance(one, Tensor) and one.grad_fn is not None]
            yield [loss for loss, _ in known], [weight for _, weight in known], loop_line(frame)
        frame = frame.f_back


def _is_weight(given: Any) -> bool:
    """Whether a gradient that a loss was given is another than 1."""
    return isinstance(given, Tensor) and not bool((given == 1).all())


def _located(condition: Condition, value: Value, line: str) -> Condition:
    """Return the condition of a loss that was not read with its reason and the line of its backward."""
    if condition is not UNREAD_LOSS:
        return condition
    why = value.why if isinstance(value, Unread) else "a factor or divisor is not in its graph"
    return not_read(f"{why}; {line}")


def _gone() -> None:
    return None


def _kept(tensor: Tensor) -> _Output:
    """Return a way to get at an output's values that keeps no large tensor alive."""
    if tensor.numel() <= KEPT_VALUES:
        values = tensor.detach()
        return _Output(lambda: values, version(tensor))
    return _Output(ref(tensor), version(tensor))
