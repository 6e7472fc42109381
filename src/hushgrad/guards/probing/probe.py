"""When a model and its losses are probed: on the first batch, again when the modules have changed, and now and then.

A probe stays pending until a physical batch of at least two examples was examined, before its sums can be released, and
two of them had finite values and gradients: what is not finite contributes nothing, and shows nothing. Afterwards a few
examples of secret random batches are looked at; all others cost one look at the list of modules for each forward.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node

from hushgrad.accounting.conditions import INNER_LOSS, WITHOUT_LOADER, Condition
from hushgrad.capture.axes.layout import Path, Role
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.scope import Scope
from hushgrad.errors import HushgradError, UnsupportedModelError
from hushgrad.gradients.across import Across
from hushgrad.guards.probing.batch_probe import BatchProbe, ProbeReport
from hushgrad.guards.probing.bypass import require_no_bypass
from hushgrad.guards.probing.due_calls import DueCalls
from hushgrad.guards.probing.evaluations import Evaluations
from hushgrad.guards.probing.findings import Findings
from hushgrad.guards.probing.item_probe import ItemProbe
from hushgrad.guards.probing.kept_calls import Pending
from hushgrad.guards.probing.layout import roles_of_inputs
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.loss_cuts import Cut
from hushgrad.guards.probing.loss_probe import Criterion, require_separate_losses
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.on_trust import OnTrust
from hushgrad.guards.probing.other_processes import OtherProcesses
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.probed import Probed
from hushgrad.guards.probing.row_order import KnownByPlace, RowOrder
from hushgrad.guards.probing.scalar_loss import ScalarLoss
from hushgrad.guards.probing.trees import tensors_at
from hushgrad.guards.probing.widths import Drawn
from hushgrad.losses import Arguments
from hushgrad.randomness import KeyStream
from hushgrad.torch_internals import NO_GRAPH_TASK, current_graph_task, will_execute
from hushgrad.torch_sharding import fully_sharded, is_split, without_messages


class _Entered(NamedTuple):
    """An outermost forward that may be trained on, and what is kept of it where it has to be examined."""

    module: nn.Module
    pending: Pending | None


class ForwardWatcher(Protocol):
    """Is told of the outermost forwards of an item that may be trained on."""

    def entering(self, inputs: Any) -> None:
        """One begins with these inputs."""

    def returned(self) -> None:
        """It has returned, and what capture and the probe put on torch's stack for it is gone."""


class Probe:
    """Watches the forwards of one session and probes those of its first batch.

    Guarantee: no update is released before the model was probed on a batch of at least two examples, unless all
    batches so far held one. Until two examples of a batch have finite values and gradients, each batch is probed.

    Args:
        model: the root.
        parameters: what is trained, by name.
        loss_reduction: "mean" or "sum", as declared.
        stream: secret bits for the choice of later batches that are looked at; None where there are no later ones.
        expected_size: the expected batch size, by which losses may be divided; None where it is not known.
        public: tensors that were declared, and are no part of any batch.
    """

    def __init__(
        self,
        model: nn.Module,
        parameters: Mapping[str, nn.Parameter],
        loss_reduction: str,
        stream: KeyStream | None = None,
        expected_size: float | None = None,
        public: PublicTensors | None = None,
        sparse: Sequence[str] = (),
    ) -> None:
        self._model = model
        self._sparse = frozenset(sparse)
        self._sharded = fully_sharded(model)
        self._is_split = is_split(model)
        self._others = OtherProcesses()
        self._parameters = parameters
        self._loss_reduction = loss_reduction
        self._positions = Positions()
        self._is_private = _weakly(self._is_accumulating)
        self._programs = LossPrograms(
            loss_reduction, expected_size, stream, public, self._positions, model, self._is_private
        )
        self.on_finding: Callable[[HushgradError], None] = lambda error: None
        """Told of every error that says that examples influence each other, before it is raised."""
        self._findings = Findings(
            lambda error: self.on_finding(error), self._programs.stop, self._others, is_split=self._is_split
        )
        self._scalar_loss = ScalarLoss(model, loss_reduction, self._is_private, self._findings.told, self._programs)
        self._row_order = RowOrder()
        self._on_trust = OnTrust(self._scalar_loss, self._programs, self._row_order)
        self._scope: Scope | None = None
        self._anchor: Node | None = None
        self._looks = Looks(stream)
        self._has_begun = False  # whether it was drawn for the batch in work if it is looked at
        self._calls = DueCalls(model, list(parameters.values()), self._looks, public)
        self._evaluations = Evaluations(self._looks, self._is_private, public)
        self._batch = BatchProbe(self._calls, self._evaluations, self._looks, self._on_trust, self._probed)
        self._items = ItemProbe(self._looks, self._findings, self._on_trust)
        self._drawn: Drawn | None = None
        self._recorded: Callable[[int], Iterable[tuple[str, Tensor]]] | None = None
        self.watcher: ForwardWatcher | None = None
        """Is told of the forwards of the item in work."""
        self._may_compile = False
        self._uncompiled: tuple[Callable[..., Any], ...] = (self._entering, self._left)
        self._choose_uncompiled()
        self._is_busy = False
        self._rehearses = False
        self._rows: Sequence[int] | None = None  # whose gradients are recorded; None for all
        self.is_waiting = True
        """Whether forwards may belong to a batch that is trained on; between two items of a loader they do not."""
        self._is_divided = False
        self._changes_gradients = False

    def join(self, scope: Scope) -> None:
        """Take the scope of the model, whose observer this probe is."""
        self._scope, scope.expects = scope, self._expected
        self._anchor = torch.autograd.graph.get_gradient_edge(scope.anchor).node
        self._scalar_loss.join(self._anchor)

    def _expected(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[Path, Role] | None:
        """Return what inputs hold that are parts of the loader's item, if any is not as inputs are by default."""
        drawn = self._drawn
        if drawn is None or self._is_busy:
            return None
        found = roles_of_inputs(drawn.item, drawn.roles, (args, kwargs))
        return {} if all(role is Role.FIRST for role in found.values()) else found

    def _roles(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Mapping[Path, Role]:
        return {} if self._scope is None else self._scope.roles_of(module, args, kwargs)

    # What the session and the losses tell ------------------------------------------------------------------------

    def entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Entered | None:
        """An outermost forward begins; return what is kept of it until it has returned."""
        found: _Entered | None = self._uncompiled[0](module, args, kwargs)
        return found

    def left(self, entered: _Entered | None, output: Any, hangs_hooks: bool) -> None:
        """It has returned."""
        self._uncompiled[1](entered, output, hangs_hooks)

    def _choose_uncompiled(self) -> None:
        """Keep what is done around a forward out of what a loop compiles, once it may compile anything."""
        if not self._may_compile and "torch._dynamo" in sys.modules:
            self._may_compile = True
            self._uncompiled = tuple(map(torch.compiler.disable, self._uncompiled))

    def _entering(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Entered | None:
        if self._is_busy or not self.is_waiting:
            return None
        if current_graph_task() != NO_GRAPH_TASK:  # a block that checkpointing computes again
            return None
        if not any(parameter.requires_grad for parameter in self._parameters.values()):
            return None  # in session.paused()
        if self._is_split:
            self._others.require_same_inputs(() if self._drawn is None else self._drawn.item, args, kwargs)
        if module is not self._model and self._drawn is None:  # else what runs between parts is run again
            require_no_bypass(self._model, module, sys._getframe())
        self._row_order.entering((args, kwargs))
        self._begin_looks()
        item_lengths = frozenset() if self._drawn is None else self._drawn.second_lengths
        pending = self._calls.begun(module, args, kwargs, item_lengths)
        state = None if pending is None else pending.call.state
        self._programs.given((args, kwargs), state, self._roles(module, args, kwargs))
        if self.watcher is not None:
            self.watcher.entering((args, kwargs))
        return _Entered(module, pending)

    def _left(self, entered: _Entered | None, output: Any, hangs_hooks: bool) -> None:
        if entered is None:
            return
        self._programs.returned(output, self._scope.turned if self._scope is not None else (), entered.module)
        if output is None:
            return
        if entered.pending is not None:
            call = entered.pending.call
            call.returned(output, hangs_hooks, self._is_private)
            call.is_hooked = self._others.is_so_anywhere(call.is_hooked)
            call.changes_gradients = self._others.is_so_anywhere(call.changes_gradients)
            self._changes_gradients = self._changes_gradients or call.changes_gradients
        if self.watcher is not None:
            self.watcher.returned()
        self._scalar_loss.left(entered.module, output)

    def evaluating(self, criterion: Criterion) -> None:
        """A criterion is going to be called: keep what it keeps, unless it was examined before."""
        if not self._is_busy and self.is_waiting:
            self._evaluations.begin(criterion)
            self._programs.evaluating(criterion.watched)

    def evaluated(self, criterion: Criterion, arguments: Arguments, losses: Tensor) -> None:
        """A criterion gave these losses; it is examined at the end of the batch unless it was before.

        Raises:
            CrossSampleLeakError: what the graph of the losses shows already.
        """
        if self._is_busy or not self.is_waiting:
            return
        self._programs.evaluated(criterion.watched)
        self._scalar_loss.vouch(losses, self._asked)
        self._programs.losses(losses)
        if not losses.requires_grad or not self._evaluations.note(criterion, arguments, losses):
            return
        with self._findings.told():
            self._look_at_graph(losses)  # values that are not finite are seen to when the criterion is examined

    def losses(self, losses: Tensor) -> None:
        """Look at the graph of the losses of a batch, before the backward uses it up.

        Raises:
            CrossSampleLeakError: the loss of one example depends on another's outputs.
        """
        self._scalar_loss.vouch(losses, self._asked)
        self._programs.losses(losses)
        with self._findings.told():
            self._batch.is_told &= self._look_at_graph(losses)

    def total(self, loss: Tensor) -> None:
        """`loss` is the sum of losses that were examined, and will be held to its gradient when its backward runs."""
        self._scalar_loss.vouch_total(loss)

    @property
    def saw_own_loss(self) -> bool:
        """Whether a backward over the item in work came, also in part, from a scalar that the session did not make."""
        return self._scalar_loss.saw_own

    def told_losses(self, sessions: Set[int]) -> int | None:
        """Return of how many backwards the losses are known to be one for each example; None where one is not.

        `sessions` are the graph tasks of those that the session itself made.
        """
        return self._scalar_loss.told_losses(sessions)

    @property
    def saw_narrow_loss(self) -> bool:
        """Whether gradients of the item in work passed through 16 bits between a loss and the model's outputs."""
        return self._scalar_loss.saw_narrow

    def is_narrow(self, losses: Tensor) -> bool:
        """Return whether gradients of these losses pass through 16 bits before they come to the model's outputs."""
        return self._scalar_loss.is_narrow(losses)

    def cuts(self, loss: Tensor) -> list[Cut]:
        """Return where the gradient of a loss of the loop's own may be multiplied before it is rounded to 16 bits."""
        return self._scalar_loss.cuts(loss)

    def multiplied(self, factor: float) -> None:
        """The backward that runs had the gradient of its loss multiplied there."""
        self._scalar_loss.multiplied(factor)

    @property
    def _asked(self) -> list[Tensor]:
        return [] if self._scope is None else self._scope.asked

    def _look_at_graph(self, losses: Tensor) -> bool:
        calls = self._calls.of_size(losses.shape[0])
        outputs = [tensor for call in calls for _, tensor in tensors_at(call.output)]
        if calls:
            outputs += self._asked  # of a gradient penalty, which comes by no output
        with without_messages(self._sharded):
            return require_separate_losses(losses, outputs)

    def look_with_others(self, stream: KeyStream, across: Across, listen: Callable[[], object]) -> None:
        """Look at the batches that other processes look at: secret bits that all of them have.

        Each look at a sharded model has all of them put it together, and in each at a tensor parallel one all processes
        of a row run it. They come to one verdict on gradients.

        Args:
            stream: the secret bits.
            across: the processes that have other parts of the gradients.
            listen: raises what another one of them has found.
        """
        self._looks.draw_from(stream)
        self._others.join(across, listen)

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Inside, a backward runs that comes again: nothing of it is looked at."""
        self._rehearses = True
        try:
            yield
        finally:
            self._rehearses = False

    def rows_to_compare(self, size: int) -> list[int]:
        """Return examples of the batch whose captured gradients `examine` will want, before its backward comes."""
        return self._calls.rows_to_compare(size, self._roles)

    def stop_looks(self) -> None:
        """Look at no later batch: for benchmarks of an ordinary step, which measure looks by themselves."""
        self._looks.stop()
        self._programs.stop_looks()

    def forget(self) -> None:
        """Drop what the current batch has run: it was discarded, or has no examples."""
        self._is_busy = False  # an interrupt may have come before `examine` said so
        self._choose_uncompiled()
        self._has_begun = False
        self._calls.forget()
        self._evaluations.clear()
        self._row_order.forget()
        self._drawn = self._recorded = None
        self._batch.is_told = True
        self.watcher = None
        self._programs.forget()
        self._scalar_loss.forget()

    def begin_item(self, size: int, drawn: Drawn) -> None:
        """An item of `size` examples is handed out; what ran before it is forgotten."""
        has_begun = self._has_begun
        self.forget()
        self._drawn, self._has_begun = self._items.known(drawn), has_begun
        self._programs.begin(size, self._drawn)
        self.is_waiting = True
        self._scalar_loss.size = size

    def end_item(self) -> None:
        """The item is done; forwards before the next one belong to no batch."""
        self.forget()
        self.is_waiting = False

    def expect_order(self, item: Any, rows: int, known: KnownByPlace) -> None:
        """The item that comes now has what is known by its place: look whether rows keep their order.

        Raises:
            ProtocolError: collate_fn puts them into another one.
        """
        self._items.require_order(known)
        self._row_order.expect(item, rows, known)

    def has_no_item(self) -> None:
        """The losses to come are of a loop without a loader: what it computed before it had them was not seen."""
        self._on_trust.take(WITHOUT_LOADER)

    @property
    def changes_gradients(self) -> bool:
        """Whether hooks or functions of somebody else's were in a forward or in the loop, and may change gradients."""
        return self._changes_gradients or self._programs.change_gradients

    @property
    def writes_down(self) -> bool:
        """Whether the loop's calls on the item in work are written down, so that such a hook may still be met."""
        return self._programs.are_written_down

    def is_due(self, size: int) -> bool:
        """Return whether `examine` will run the model again: where it is sharded, with whole parameters in place."""
        return self._calls.are_any(size)

    def examine(
        self,
        size: int,
        recorded: Callable[[int], Iterable[tuple[str, Tensor]]] | None = None,
        rows: Sequence[int] | None = None,
        *,
        is_divided: bool = False,
    ) -> None:
        """Probe what ran on a physical batch of `size` examples, unless it was probed before.

        `recorded` gives the gradients of one example by the parameters, where one backward has recorded all of them;
        of `rows` alone, or of all.
        `is_divided`: whether the gradients of some losses were divided by the number of examples.

        Raises:
            CrossSampleLeakError, PrivateBufferError: naming the place and the cure.
        """
        self._findings.is_ending, self._is_divided, self._rows = True, is_divided, rows
        try:
            self.raise_kept_back()
            self._examine_all(size, recorded)
        except UnsupportedModelError as error:
            self._others.require(error)
            raise
        finally:
            self._findings.is_ending = False

    def raise_kept_back(self) -> None:
        """Raise what was found of a sharded model in a forward, a loss or a backward.

        There it would have other processes wait for parameters that this one has a part of.
        """
        self._findings.raise_kept_back()

    def _examine_all(self, size: int, recorded: Callable[[int], Iterable[tuple[str, Tensor]]] | None) -> None:
        self._scalar_loss.close()
        with self._findings.told():
            try:
                self._scalar_loss.doubt(self._programs.examine(is_divided=self._is_divided))
                self._row_order.require_kept(reorders=self._programs.reorders)
            except HushgradError:
                self._others.stop()
                raise
        self._others.go_on()
        self._on_trust.settle()
        pending, in_part = self._calls.whole(size), self._calls.in_part(size)
        evaluations = self._evaluations.reached() if size > 1 else []
        if pending or in_part or evaluations:
            is_plain = type(self._model).__call__ is nn.Module.__call__  # else what is hooked is not what a run returns
            if is_plain and self._calls.count == 1 and INNER_LOSS not in self._scalar_loss.conditions:
                self._recorded = recorded
            self._is_busy = True
            try:
                with self._findings.told():
                    self._batch.examine(pending, evaluations, size)
                    self._batch.look(in_part, size)
            finally:
                self._is_busy = False
        with self._findings.told():
            self._programs.examine_beside(self._drawn)  # the model has shown by now which outputs have positions
        self.forget()

    def before_draw(self, collate_fn: Callable[[list[Any]], Any] | None, dataset: Any) -> None:
        """The next item is going to be read: keep what its examination compares with."""
        self._begin_looks()
        self._programs.before_draw(collate_fn, dataset)
        self._items.before_draw(collate_fn, dataset)

    def examine_collate(self, drawn: Drawn) -> None:
        """Probe the caller's `collate_fn` on the first records drawn, at least two, and on some of later batches.

        Where it fills a buffer of its own, that holds the item again afterwards.

        Raises:
            CrossSampleLeakError: it mixes records, or keeps what follows them.
        """
        self._begin_looks()
        self._items.examine(drawn)

    @property
    def report(self) -> ProbeReport:
        """What was done so far."""
        return self._batch.report

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What this session took on trust so far, in the order in which it came about."""
        return self._on_trust.conditions

    @property
    def open_conditions(self) -> tuple[Condition, ...]:
        """What would be on trust if the session ended now; a later batch may still show it."""
        return self._on_trust.open_conditions(is_never_examined=self._calls.is_never_examined)

    def _begin_looks(self) -> None:
        """Decide once for each batch whether it is looked at."""
        if not self._has_begun:
            self._has_begun = True
            self._looks.begin()

    def _is_accumulating(self) -> bool:
        assert self._anchor is not None
        return will_execute(self._anchor) and not self._rehearses

    def _probed(self) -> Probed:
        assert self._scope is not None
        parameters = self._parameters
        if self._sharded:  # whole ones are in their place
            named = dict(self._model.named_parameters())
            parameters = {name: named[name] for name in parameters}
        probed = Probed(self._model, self._scope, parameters, self._loss_reduction)
        probed.axes, probed.drawn, probed.novelty = self._calls.axes, self._drawn, self._calls.novelty
        probed.positions, probed.cuts = self._positions, self._programs.cuts | self._calls.novelty.cuts
        probed.recorded, probed.recorded_rows, probed.is_divided = self._recorded, self._rows, self._is_divided
        probed.is_hooked_by_loop = self._programs.change_gradients
        probed.across, probed.sparse = self._others.across, self._sparse
        return probed


def _weakly(method: Callable[[], bool]) -> Callable[[], bool]:
    """Return a call of a method for hooks, whose graph its object may be held by; False once the object is gone."""
    known = weakref.WeakMethod(method)

    def call() -> bool:
        found = known()
        return found is not None and found()

    return call
