"""When a model and its losses are probed: on the first batch, and again when the modules have changed.

A probe stays pending until a physical batch of at least two examples was examined, before its sums can be released, and
two of them had finite values and gradients: what is not finite contributes nothing, and shows nothing.
While nothing is pending it costs one look at the list of modules for each forward.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.data.dataloader import default_collate

from hushgrad.accounting.conditions import NEVER_EXAMINED, ORDER_OF_ROWS, Condition, not_examined
from hushgrad.capture.scope import Scope
from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    LossShapeError,
    PrivacyUnitError,
    PrivateBufferError,
)
from hushgrad.guards.probing.calls import Call
from hushgrad.guards.probing.collate_probe import RECORDS, require_separate_rows
from hushgrad.guards.probing.loss_probe import Criterion, CriterionProbe, require_separate_losses
from hushgrad.guards.probing.model_probe import ModelProbe
from hushgrad.guards.probing.row_order import rows_are_in_order
from hushgrad.guards.probing.scalar_loss import ScalarLoss
from hushgrad.guards.probing.trees import copied, kept_values, tensors_at
from hushgrad.torch_internals import NO_GRAPH_TASK, current_graph_task, hook_counts, modules_of, will_execute

Signature = tuple[tuple[nn.Module, ...], tuple[bool, ...], tuple[int, ...]]
"""What a change of the model shows in: its modules, their modes and the number of their hooks."""


@dataclass(frozen=True)
class ProbeReport:
    """What the probe of a session has done so far.

    Attributes:
        forwards: its cost in forwards of a physical batch; a backward counts as two.
        calls: how many forwards of the model were examined.
        criteria: how many criteria were examined.
        examined: whether a batch of at least two examples with finite values and gradients was examined.
        notes: what could not be examined, and why.
    """

    forwards: float
    calls: int
    criteria: int
    examined: bool
    notes: tuple[str, ...]


MOST_LOOKS_AT_ORDER = 3
"""How many items are looked at for the order of their rows, where it cannot be told."""

KEPT_CALLS = 4
"""How many calls of one module in one batch are kept to be examined; the others run the same code."""


FINDINGS = (CrossSampleLeakError, PrivateBufferError, LossShapeError, PrivacyUnitError)
"""Errors of an examination that say something of batches before, too: those that were released like the one examined.

What capture refuses by itself (DP304 in a forward) does not: capture looks at every batch, and what it refuses was
never released.
"""


@dataclass(eq=False)
class _Pending:
    call: Call
    signature: Signature
    frozen: list[nn.Parameter]  # for a while; their gradients are not examined with this call


@dataclass(frozen=True, eq=False)
class _Entered:
    """An outermost forward that may be trained on, and what is kept of it where it has to be examined."""

    module: nn.Module
    pending: _Pending | None


@dataclass(eq=False)
class _Evaluation:
    """What a criterion was given: the output itself, to know it again, and the values of then."""

    criterion: Criterion
    given: Any
    output: Any
    target: Any
    is_reached: bool = False


class Probe:
    """Watches the forwards of one session and probes those of its first batch.

    Guarantee: no update is released before the model was probed on a batch of at least two examples, unless all
    batches so far held one. Until two examples of a batch have finite values and gradients, each batch is probed.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], loss_reduction: str) -> None:
        self._model = model
        self._parameters = parameters
        self._loss_reduction = loss_reduction
        self._scalar_loss = ScalarLoss(model, loss_reduction, self._is_accumulating, self._findings_told)
        self.on_finding: Callable[[HushgradError], None] = lambda error: None
        """Told of every error that says that examples influence each other, before it is raised."""
        self._scope: Scope | None = None
        self._anchor: Node | None = None
        self._examined: dict[Signature, bool] = {}  # whether on more than one example
        self._frozen: dict[Signature, list[nn.Parameter]] = {}  # what was frozen then
        self._criteria: WeakSet[Any] = WeakSet()
        self._pending: list[_Pending] = []
        self._evaluations: dict[Criterion, _Evaluation] = {}
        self._is_busy = False
        self._is_told = True  # what the graph of the losses of this batch was asked
        self._forwards, self._call_count, self._criterion_count = 0.0, 0, 0
        self._notes: list[str] = []
        self.is_waiting = True
        """Whether forwards may belong to a batch that is trained on; between two items of a loader they do not."""
        self._padded: tuple[Any, int] | None = None
        self._looks_at_order = 0
        self._is_in_order: bool | None = None  # None while there was no padding
        self.collate_fn: Callable[[list[Any]], Any] | None = None
        """The caller's own way to make a batch of records, until it was examined; torch's default needs no look."""

    def join(self, scope: Scope) -> None:
        """Take the scope of the model, whose observer this probe is."""
        self._scope = scope
        self._anchor = torch.autograd.graph.get_gradient_edge(scope.anchor).node
        self._scalar_loss.join(self._anchor)

    # What the session and the losses tell ------------------------------------------------------------------------

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Entered | None:
        """An outermost forward begins; return what is kept of it until it has returned."""
        if self._is_busy or not self.is_waiting:
            return None
        if current_graph_task() != NO_GRAPH_TASK:  # a block that checkpointing computes again
            return None
        if not any(parameter.requires_grad for parameter in self._parameters.values()):
            return None  # in session.paused()
        if self._padded is not None:
            self._look_at_order(args, kwargs)
        signature = _signature_of(self._model)
        if self._frozen and any(parameter.requires_grad for parameter in self._frozen.get(signature, ())):
            self._examined.pop(signature)
            self._frozen.pop(signature)
        if not self._examined.get(signature, False) and self._has_room(module, signature):
            frozen = [parameter for parameter in self._parameters.values() if not parameter.requires_grad]
            return _Entered(module, _Pending(Call.begun(self._model, module, args, kwargs), signature, frozen))
        return _Entered(module, None)

    def left(self, entered: _Entered | None, output: Any) -> None:
        """It has returned."""
        if entered is None or output is None:
            return
        self._scalar_loss.left(entered.module, output)
        pending = entered.pending
        if pending is not None:
            pending.call.returned(output, self._is_accumulating)
            self._pending.append(pending)

    def evaluated(self, criterion: Criterion, output: Any, target: Any, losses: Tensor) -> None:
        """A criterion gave these losses; it is examined at the end of the batch unless it was before.

        Raises:
            CrossSampleLeakError: what the graph of the losses shows already.
        """
        if self._is_busy or not self.is_waiting:
            return
        self._scalar_loss.vouch(losses)
        if criterion in self._criteria or not losses.requires_grad:
            return
        if criterion not in self._evaluations or not self._evaluations[criterion].is_reached:
            evaluation = _Evaluation(criterion, output, *copied((output, target)))
            self._evaluations[criterion] = evaluation
            losses.register_hook(self._mark(evaluation))  # type: ignore[no-untyped-call]
        with self._findings_told():
            self._look_at_graph(losses)  # values that are not finite are seen to when the criterion is examined

    def losses(self, losses: Tensor) -> None:
        """Look at the graph of the losses of a batch, before the backward uses it up.

        Raises:
            CrossSampleLeakError: the loss of one example depends on another's outputs.
        """
        self._scalar_loss.vouch(losses)
        with self._findings_told():
            if not self._look_at_graph(losses):
                self._is_told = False

    def total(self, loss: Tensor) -> None:
        """`loss` is the sum of losses that were examined, and will be held to its gradient when its backward runs."""
        self._scalar_loss.vouch_total(loss)

    @property
    def saw_own_loss(self) -> bool:
        """Whether a backward over the item in work came, also in part, from a scalar that the session did not make."""
        return self._scalar_loss.saw_own

    @property
    def saw_narrow_loss(self) -> bool:
        """Whether gradients of the item in work passed through 16 bits between a loss and the model's outputs."""
        return self._scalar_loss.saw_narrow

    def is_narrow(self, losses: Tensor) -> bool:
        """Return whether gradients of these losses pass through 16 bits before they come to the model's outputs."""
        return self._scalar_loss.is_narrow(losses)

    def _look_at_graph(self, losses: Tensor) -> bool:
        calls = [part.call for part in self._pending if _holds(part.call.inputs, losses.shape[0])]
        outputs = [tensor for call in calls for _, tensor in tensors_at(call.output)]
        return require_separate_losses(losses, outputs)

    def forget(self) -> None:
        """Drop what the current batch has run: it was discarded, or has no examples."""
        self._is_busy = False  # an interrupt may have come before `examine` said so
        self._pending.clear()
        self._evaluations.clear()
        self._padded = None
        self._is_told = True
        self._scalar_loss.forget()

    def begin_item(self, size: int) -> None:
        """An item of `size` examples is handed out; what ran before it is forgotten."""
        self.forget()
        self.is_waiting = True
        self._scalar_loss.size = size

    def end_item(self) -> None:
        """The item is done; forwards before the next one belong to no batch."""
        self.forget()
        self.is_waiting = False

    def watch_items(self, collate_fn: Callable[[list[Any]], Any] | None) -> None:
        """A loader will hand out items that `collate_fn` makes."""
        self.collate_fn = collate_fn
        self.end_item()

    def expect_order(self, item: Any, rows: int) -> None:
        """The item that comes now has padding, which is known by its place: look once whether rows keep their order."""
        self._is_in_order = bool(self._is_in_order)
        if self._looks_at_order < MOST_LOOKS_AT_ORDER:
            self._padded = (item, rows)

    def _look_at_order(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        assert self._padded is not None
        in_order = rows_are_in_order(self._padded[0], (args, kwargs), self._padded[1])
        self._is_in_order = self._is_in_order or in_order
        self._looks_at_order += MOST_LOOKS_AT_ORDER if in_order else 1
        self._padded = None

    def is_due(self, size: int) -> bool:
        """Return whether `examine` will run the model again."""
        return any(self._is_due(part, size) for part in self._pending)

    def examine(self, size: int) -> None:
        """Probe what ran on a physical batch of `size` examples, unless it was probed before.

        Raises:
            CrossSampleLeakError, PrivateBufferError: naming the place and the cure.
        """
        self._scalar_loss.close()
        pending = [part for part in self._pending if self._is_due(part, size)]
        evaluations = [part for part in self._evaluations.values() if part.is_reached and size > 1]
        if pending or evaluations:
            self._is_busy = True
            try:
                with self._findings_told():
                    self._examine(pending, evaluations, size)
            finally:
                self._is_busy = False
        self.forget()

    def examine_collate(self, dataset: Any, indices: Sequence[int], item: Any) -> None:
        """Probe the caller's `collate_fn` on the first records drawn, at least two; they are read once more.

        `item` is what it made of them: where it fills a buffer of its own, that holds the item again afterwards.

        Raises:
            CrossSampleLeakError: it mixes records.
        """
        if self.collate_fn is None or self.collate_fn is default_collate or len(indices) < 2:
            return
        with kept_values(item), self._findings_told():
            if require_separate_rows(self.collate_fn, [dataset[index] for index in indices[:RECORDS]]):
                self.collate_fn = None

    @property
    def report(self) -> ProbeReport:
        """What was done so far."""
        return ProbeReport(
            forwards=self._forwards,
            calls=self._call_count,
            criteria=self._criterion_count,
            examined=any(self._examined.values()),
            notes=tuple(dict.fromkeys(self._notes)),
        )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What this session took on trust so far, in the order in which it came about."""
        return (*self._scalar_loss.conditions, *(not_examined(note) for note in dict.fromkeys(self._notes)))

    @property
    def open_conditions(self) -> tuple[Condition, ...]:
        """What would be on trust if the session ended now; a later batch may still show it."""
        never = bool(self._examined) and not any(self._examined.values())
        return (*([NEVER_EXAMINED] if never else []), *([ORDER_OF_ROWS] if self._is_in_order is False else []))

    @contextmanager
    def _findings_told(self) -> Iterator[None]:
        try:
            yield
        except FINDINGS as error:
            self.on_finding(error)
            raise

    def _has_room(self, module: nn.Module, signature: Signature) -> bool:
        """Keep few calls of one module: the first ones of a batch, the last one in eval(), where most train nothing."""
        alike = [part for part in self._pending if part.call.module is module and part.signature == signature]
        if not self._model.training:
            for part in alike:
                if not part.call.reached:
                    self._pending.remove(part)
            return True
        return len(alike) < KEPT_CALLS

    def _is_due(self, pending: _Pending, size: int) -> bool:
        if not pending.call.is_training and not pending.call.reached:
            return False  # an evaluation between two batches
        known = self._examined.get(pending.signature)
        return known is None or (size > 1 and not known)

    def _is_accumulating(self) -> bool:
        assert self._anchor is not None
        return will_execute(self._anchor)

    def _mark(self, evaluation: _Evaluation) -> Callable[[Tensor], None]:
        def hook(gradient: Tensor) -> None:
            if self._is_accumulating():
                evaluation.is_reached = True

        return hook

    def _examine(self, pending: Sequence[_Pending], evaluations: Sequence[_Evaluation], size: int) -> None:
        assert self._scope is not None
        probe = ModelProbe(self._model, self._scope, self._parameters, self._loss_reduction)
        probe.keeps_runs = len(pending) == 1 and bool(evaluations)
        for part in pending:
            if not evaluations:
                part.call.output = None  # its memory is needed now
            self._is_told &= probe.examine(part.call, size)
        if pending:
            self._forwards = max(self._forwards, probe.forwards / len(pending))
        self._call_count += len(pending)
        self._notes.extend(probe.skipped)
        for evaluation in evaluations:
            is_output = len(pending) == 1 and pending[0].call.output is evaluation.given
            is_told = CriterionProbe(evaluation.criterion).examine(
                evaluation.output, evaluation.target, size, probe.runs if is_output else None
            )
            self._criterion_count += 1
            if is_told:
                self._criteria.add(evaluation.criterion)
        for part in pending:
            self._examined[part.signature] = size > 1 and self._is_told
            if part.frozen:
                self._frozen[part.signature] = part.frozen


def _holds(inputs: Any, size: int) -> bool:
    """Whether inputs hold as many examples as there are losses; capture says what is wrong where they do not."""
    shapes = [tensor.shape for _, tensor in tensors_at(inputs) if tensor.ndim]
    return any(shape[0] == size or (len(shape) > 2 and shape[1] == size) for shape in shapes)


def _signature_of(model: nn.Module) -> Signature:
    modules = modules_of(model)
    return tuple(modules), tuple([module.training for module in modules]), hook_counts(modules)
