"""When a model and its losses are probed: on the first batch, and again when the modules have changed.

A probe stays pending until a physical batch of at least two examples was examined, before its sums can be released.
While nothing is pending it costs one look at the list of modules for each forward.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any
from weakref import WeakSet

import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import default_collate

from hushgrad.capture.scope import Scope
from hushgrad.frozen_setup import modules_of
from hushgrad.probing.calls import Call
from hushgrad.probing.collate_probe import RECORDS, require_separate_rows
from hushgrad.probing.loss_probe import Criterion, CriterionProbe, require_separate_losses
from hushgrad.probing.model_probe import ModelProbe
from hushgrad.probing.trees import tensors_at

Signature = tuple[tuple[nn.Module, bool, int], ...]


@dataclass(frozen=True)
class ProbeReport:
    """What the probe of a session has done so far.

    Attributes:
        forwards: its cost in forwards of a physical batch; a backward counts as two.
        calls: how many forwards of the model were examined.
        criteria: how many criteria were examined.
        examined: whether a batch of at least two examples was examined.
        notes: what could not be examined, and why.
    """

    forwards: float
    calls: int
    criteria: int
    examined: bool
    notes: tuple[str, ...]


@dataclass(frozen=True, eq=False)
class _Evaluation:
    criterion: Criterion
    output: Any
    target: Any


class Probe:
    """Watches the forwards of one session and probes those of its first batch.

    Guarantee: no update is released before the model was probed on a batch of at least two examples, unless all
    batches so far held one.
    """

    def __init__(self, model: nn.Module, parameters: Mapping[str, nn.Parameter], loss_reduction: str) -> None:
        self._model = model
        self._parameters = parameters
        self._loss_reduction = loss_reduction
        self._examined: dict[Signature, bool] = {}  # whether on more than one example
        self._criteria: WeakSet[Any] = WeakSet()
        self._calls: list[Call] = []
        self._evaluations: list[_Evaluation] = []
        self._open: Call | None = None
        self._signature: Signature = ()
        self._is_busy = False
        self._forwards, self._call_count, self._criterion_count = 0.0, 0, 0
        self._notes: list[str] = []
        self.collate_fn: Callable[[list[Any]], Any] | None = None
        """The caller's own way to make a batch of records, until it was examined; torch's default needs no look."""

    # What the session and the losses tell ------------------------------------------------------------------------

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """An outermost forward begins."""
        self._open = None
        if self._is_busy or torch._C._current_graph_task_id() != -1:  # a block that checkpointing computes again
            return
        signature = _signature_of(self._model)
        if not self._examined.get(signature, False):
            self._signature = signature
            self._open = Call.begun(self._model, module, args, kwargs)

    def left(self, output: Any) -> None:
        """It has returned."""
        call, self._open = self._open, None
        if call is not None and output is not None:
            call.returned(output)
            self._calls.append(call)

    def evaluated(self, criterion: Criterion, output: Any, target: Any, losses: Tensor) -> None:
        """A criterion gave these losses; it is examined at the end of the batch unless it was before.

        Raises:
            CrossSampleLeakError: what the graph of the losses shows already.
        """
        if self._is_busy or criterion in self._criteria or not losses.requires_grad:
            return
        self._evaluations.append(_Evaluation(criterion, output, target))
        self.losses(losses)

    def losses(self, losses: Tensor) -> None:
        """Look at the graph of the losses of a batch, before the backward uses it up.

        Raises:
            CrossSampleLeakError: the loss of one example depends on another's outputs.
        """
        calls = [call for call in self._calls if _holds(call.inputs, losses.shape[0])]
        outputs = [tensor for call in calls for _, tensor in tensors_at(call.output)]
        require_separate_losses(losses, outputs)

    def forget(self) -> None:
        """Drop what the current batch has run: it was discarded, or has no examples."""
        self._calls.clear()
        self._evaluations.clear()
        self._open = None

    def examine(self, scope: Scope, size: int) -> None:
        """Probe what ran on a physical batch of `size` examples, unless it was probed before.

        Raises:
            CrossSampleLeakError, PrivateBufferError: naming the place and the cure.
        """
        known = self._examined.get(self._signature)
        if self._calls and (known is None or (size > 1 and not known)):
            self._busily(lambda: self._examine(scope, size))
        self.forget()

    def examine_collate(self, dataset: Any, indices: Sequence[int]) -> None:
        """Probe the caller's `collate_fn` on the first records drawn, at least two; they are read once more.

        Raises:
            CrossSampleLeakError: it mixes records.
        """
        if self.collate_fn is None or self.collate_fn is default_collate or len(indices) < 2:
            return
        require_separate_rows(self.collate_fn, [dataset[index] for index in indices[:RECORDS]])
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

    def _busily(self, work: Callable[[], None]) -> None:
        self._is_busy = True
        try:
            work()
        finally:
            self._is_busy = False

    def _examine(self, scope: Scope, size: int) -> None:
        probe = ModelProbe(self._model, scope, self._parameters, self._loss_reduction)
        for call in self._calls:
            probe.examine(call, size)
        self._forwards = probe.forwards / len(self._calls)
        self._call_count += len(self._calls)
        self._notes.extend(probe.skipped)
        if size > 1:
            for evaluation in self._evaluations:
                is_output = len(self._calls) == 1 and self._calls[0].output is evaluation.output
                CriterionProbe(evaluation.criterion).examine(
                    evaluation.output, evaluation.target, size, probe.runs if is_output else None
                )
                self._criteria.add(evaluation.criterion)
                self._criterion_count += 1
        self._examined[self._signature] = size > 1


def _holds(inputs: Any, size: int) -> bool:
    """Whether inputs hold as many examples as there are losses; capture says what is wrong where they do not."""
    shapes = [tensor.shape for _, tensor in tensors_at(inputs) if tensor.ndim]
    return any(shape[0] == size or (len(shape) > 2 and shape[1] == size) for shape in shapes)


def _signature_of(model: nn.Module) -> Signature:
    return tuple(
        (module, module.training, len(module._forward_hooks) + len(module._forward_pre_hooks))
        for module in modules_of(model)
    )
