"""When a model and its losses are probed: on the first batch, again when the modules have changed, and now and then.

A probe stays pending until a physical batch of at least two examples was examined, before its sums can be released, and
two of them had finite values and gradients: what is not finite contributes nothing, and shows nothing. Afterwards a few
examples of secret random batches are looked at; all others cost one look at the list of modules for each forward.
"""

from __future__ import annotations

import sys
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, replace
from types import TracebackType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn
from torch.autograd.graph import Node
from torch.utils.data.dataloader import default_collate

from hushgrad.accounting.conditions import (
    INNER_LOSS,
    KEPT_BY_DATASET,
    LOSSES_CHANGE,
    NEVER_EXAMINED,
    VALUES_READ,
    WITHOUT_LOADER,
    Condition,
    not_examined,
)
from hushgrad.capture.axes.batch_axes import nested_is_given
from hushgrad.capture.axes.layout import Path, Role
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.scope import Scope
from hushgrad.errors import (
    CrossSampleLeakError,
    DesyncError,
    HushgradError,
    LossShapeError,
    PrivacyUnitError,
    PrivateBufferError,
    ProtocolError,
    UnsupportedModelError,
)
from hushgrad.gradients.across import NOWHERE, Across
from hushgrad.guards.probing.bypass import require_no_bypass
from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.collate_examination import require_separate_records
from hushgrad.guards.probing.collate_probe import Form
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.dataset_copies import copied_or_itself
from hushgrad.guards.probing.dataset_reads import DatasetReads
from hushgrad.guards.probing.evaluations import Evaluation, Evaluations
from hushgrad.guards.probing.joint_reads import require_separate_reads
from hushgrad.guards.probing.kept_calls import KeptCalls, Pending, Signature, signature_of
from hushgrad.guards.probing.layout import roles_of_inputs
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.loss_cuts import Cut
from hushgrad.guards.probing.loss_probe import Criterion, require_separate_losses
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.model_probe import examine, look
from hushgrad.guards.probing.novelty import Novelty, Spread
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.probed import Probed
from hushgrad.guards.probing.row_order import KnownByPlace, RowOrder
from hushgrad.guards.probing.rows import Batch, batch_axes
from hushgrad.guards.probing.scalar_loss import ScalarLoss
from hushgrad.guards.probing.state import State, forked_randomness
from hushgrad.guards.probing.trees import kept_values, tensors_at
from hushgrad.guards.probing.widths import Drawn
from hushgrad.losses import Arguments
from hushgrad.parallel.messages import digest_of
from hushgrad.parallel.replicas import digest
from hushgrad.randomness import KeyStream
from hushgrad.sampling.default_collation import functions_of_others, is_default, is_plain
from hushgrad.torch_internals import NO_GRAPH_TASK, current_graph_task, will_execute
from hushgrad.torch_sharding import fully_sharded, is_split, without_messages


@dataclass(frozen=True)
class ProbeReport:
    """What the probe of a session has done so far.

    Attributes:
        forwards: its cost in forwards of a physical batch; a backward counts as two.
        calls: how many forwards of the model were examined.
        criteria: how many criteria were examined.
        examined: whether a batch of at least two examples with finite values and gradients was examined.
        looks: how many calls were looked at by a few of their examples, in this batch and in later ones.
        look_forwards: what these looks cost in all, in forwards of a physical batch.
        notes: what could not be examined, and why.
    """

    forwards: float
    calls: int
    criteria: int
    examined: bool
    looks: int
    look_forwards: float
    notes: tuple[str, ...]


FINDINGS = (CrossSampleLeakError, PrivateBufferError, LossShapeError, PrivacyUnitError)
"""Errors of an examination that say something of batches before, too: those that were released like the one examined.

What capture refuses by itself (DP304 in a forward) does not: capture looks at every batch, and what it refuses was
never released.
"""


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


class _Told(AbstractContextManager[None]):
    """Tells of the findings that leave it. One for all uses, some of which are in every step.

    Args:
        tell: returns whether the finding is kept back, and comes later.
    """

    def __init__(self, tell: Callable[[HushgradError], bool]) -> None:
        self._tell = tell

    def __enter__(self) -> None:
        """Nothing is to be kept."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> bool:
        """Tell of a finding, and let it go on unless it is kept back."""
        return isinstance(error, FINDINGS) and self._tell(error)


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
        self._across: Across = NOWHERE
        self._listen: Callable[[], object] = lambda: None
        self._parameters = parameters
        self._loss_reduction = loss_reduction
        self._positions = Positions()
        self._is_private = _weakly(self._is_accumulating)
        self._programs = LossPrograms(
            loss_reduction, expected_size, stream, public, self._positions, model, self._is_private
        )
        self._told = _Told(self._tell)
        self._scalar_loss = ScalarLoss(model, loss_reduction, self._is_private, self._findings_told, self._programs)
        self.on_finding: Callable[[HushgradError], None] = lambda error: None
        """Told of every error that says that examples influence each other, before it is raised."""
        self._scope: Scope | None = None
        self._anchor: Node | None = None
        self._examined: dict[Signature, bool] = {}  # whether on more than one example
        self._frozen: dict[Signature, list[nn.Parameter]] = {}  # what was frozen then
        self._looks = Looks(stream)
        self._has_begun = False  # whether it was drawn for the batch in work if it is looked at
        self._calls = KeptCalls(model, list(parameters.values()), self._looks, public)
        self._novelty = Novelty()
        self._drawn: Drawn | None = None
        self._recorded: Callable[[int], Iterable[tuple[str, Tensor]]] | None = None
        self._axes: dict[nn.Module, Mapping[Path, int]] = {}
        self._evaluations = Evaluations(self._looks, self._is_private, public)
        self.watcher: ForwardWatcher | None = None
        """Is told of the forwards of the item in work."""
        self._may_compile = False
        self._uncompiled: tuple[Callable[..., Any], ...] = (self._entering, self._left)
        self._choose_uncompiled()
        self._is_busy = False
        self._rehearses = False
        self._rows: Sequence[int] | None = None  # whose gradients are recorded; None for all
        self._kept_back: HushgradError | None = None  # of a sharded model, until the end of its item
        self._is_ending = False
        self._is_told = True  # what the graph of the losses of this batch was asked
        self._forwards, self._call_count = 0.0, 0
        self._look_count, self._look_forwards = 0, 0.0
        self._notes: dict[str, None] = {}
        self._read: dict[Condition, None] = {}
        self.is_waiting = True
        """Whether forwards may belong to a batch that is trained on; between two items of a loader they do not."""
        self._row_order = RowOrder()
        self._form = Form()
        self._statistics: frozenset[Path] = frozenset()
        self._is_divided = False
        self._changes_gradients = False
        self._collate_is_known = self._reads_are_known = False
        self._dataset_reads = DatasetReads()
        self._collate_turns = 0  # how often the collate function was examined
        self._collate_before: State | None = None  # what the collate function kept before the item in work was made
        self._spread = Spread()  # of the records' lengths

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
            self._require_same_inputs(args, kwargs)
        if module is not self._model and self._drawn is None:  # else what runs between parts is run again
            require_no_bypass(self._model, module, sys._getframe())
        self._row_order.entering((args, kwargs))
        self._begin_looks()
        signature = signature_of(self._model)
        if self._frozen and any(parameter.requires_grad for parameter in self._frozen.get(signature, ())):
            self._examined.pop(signature)
            self._frozen.pop(signature)
        is_known = self._examined.get(signature, False)
        item_lengths = frozenset() if self._drawn is None else self._drawn.second_lengths
        is_new = self._novelty.note(module, (args, kwargs), self._axes.get(module, {}), item_lengths) and is_known
        pending = self._calls.begun(module, args, kwargs, signature, is_known=is_known, is_new=is_new)
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
            call.is_hooked = self._is_so_anywhere(call.is_hooked)
            call.changes_gradients = self._is_so_anywhere(call.changes_gradients)
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
        with self._findings_told():
            self._look_at_graph(losses)  # values that are not finite are seen to when the criterion is examined

    def losses(self, losses: Tensor) -> None:
        """Look at the graph of the losses of a batch, before the backward uses it up.

        Raises:
            CrossSampleLeakError: the loss of one example depends on another's outputs.
        """
        self._scalar_loss.vouch(losses, self._asked)
        self._programs.losses(losses)
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
        calls = [
            part.call
            for part in (*self._calls.whole, *self._calls.in_part)
            if _holds(part.call.inputs, losses.shape[0])
        ]
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
        self._across, self._listen = across, listen

    @contextmanager
    def rehearsing(self) -> Iterator[None]:
        """Inside, a backward runs that comes again: nothing of it is looked at."""
        self._rehearses = True
        try:
            yield
        finally:
            self._rehearses = False

    def rows_to_compare(self, size: int) -> list[int]:
        """Return examples of the batch whose captured gradients `examine` will want, before its backward comes.

        The one with the largest values, which may well be what others are scaled by, and another one.
        """
        due = [part for part in (*self._calls.whole, *self._calls.in_part) if part.call.has_returned]
        if not due or size < 2:
            return []
        call = due[0].call
        roles = self._roles(call.module, *call.inputs)
        call.lift(size, roles)
        axes = next(iter(batch_axes(call.inputs, size, roles)), None)
        largest = 0 if not axes else Batch(call.inputs, axes, size).largest()
        return [largest, 0 if largest else 1]

    def stop_looks(self) -> None:
        """Look at no later batch: for benchmarks of an ordinary step, which measure looks by themselves."""
        self._looks.stop()
        self._programs.stop_looks()

    def forget(self) -> None:
        """Drop what the current batch has run: it was discarded, or has no examples."""
        self._is_busy = False  # an interrupt may have come before `examine` said so
        self._choose_uncompiled()
        self._has_begun = False
        self._calls.clear()
        self._evaluations.clear()
        self._row_order.forget()
        self._drawn = self._recorded = None
        self._is_told = True
        self.watcher = None
        self._programs.forget()
        self._scalar_loss.forget()

    def begin_item(self, size: int, drawn: Drawn) -> None:
        """An item of `size` examples is handed out; what ran before it is forgotten."""
        has_begun = self._has_begun
        self.forget()
        form = self._form
        self._drawn, self._has_begun = (
            replace(
                drawn,
                axes=form.axes,
                lists=form.lists,
                roles_known=form.roles,
                reorders=form.reorders,
                statistics=self._statistics,
            ),
            has_begun,
        )
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
        if self._form.reorders:
            raise ProtocolError(
                f"collate_fn puts records into another order, and {known.what}",
                where="collate_fn",
                cure=f"Keep the records' order in collate_fn (pack_padded_sequence: enforce_sorted=False), or "
                f"{known.cure}",
            )
        self._row_order.expect(item, rows, known)

    def has_no_item(self) -> None:
        """The losses to come are of a loop without a loader: what it computed before it had them was not seen."""
        self._read[WITHOUT_LOADER] = None

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
        return any(self._is_due(part, size) for part in (*self._calls.whole, *self._calls.in_part))

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
        self._is_ending, self._is_divided, self._rows = True, is_divided, rows
        try:
            self.raise_kept_back()
            self._examine_all(size, recorded)
        except UnsupportedModelError as error:
            self._require_others(error)
            raise
        finally:
            self._is_ending = False

    def raise_kept_back(self) -> None:
        """Raise what was found of a sharded model in a forward, a loss or a backward.

        There it would have other processes wait for parameters that this one has a part of.
        """
        error, self._kept_back = self._kept_back, None
        if error is not None:
            self.on_finding(error)
            raise error

    def _examine_all(self, size: int, recorded: Callable[[int], Iterable[tuple[str, Tensor]]] | None) -> None:
        self._scalar_loss.close()
        with self._findings_told():
            try:
                self._scalar_loss.doubt(self._programs.examine(is_divided=self._is_divided))
                self._require_places_kept()
            except HushgradError:
                self._across.least(0)
                raise
        if not self._across.least(1):  # another process of the row goes no further, and the model's run needs all
            self._listen()
        if self._programs.has_read:
            self._read[VALUES_READ] = None
        pending = [part for part in self._calls.whole if self._is_due(part, size)]
        in_part = [part for part in self._calls.in_part if self._is_due(part, size)]
        evaluations = self._evaluations.reached() if size > 1 else []
        if pending or in_part or evaluations:
            is_plain = type(self._model).__call__ is nn.Module.__call__  # else what is hooked is not what a run returns
            if is_plain and self._calls.count == 1 and INNER_LOSS not in self._scalar_loss.conditions:
                self._recorded = recorded
            self._is_busy = True
            try:
                with self._findings_told():
                    self._examine(pending, evaluations, size)
                    self._look(in_part, size)
            finally:
                self._is_busy = False
        with self._findings_told():
            self._programs.examine_beside(self._drawn)  # the model has shown by now which outputs have positions
        self.forget()

    def _require_places_kept(self) -> None:
        """Refuse a loop that gives the model the rows of an item in another order where a row's user is told by it."""
        known = self._row_order.always
        if known is not None and self._programs.reorders:
            raise PrivacyUnitError(
                f"the loop gives the model the rows of an item in another order than the loader's, and {known.what}",
                cure=f"Keep the order of the rows, or {known.cure}",
            )

    def before_draw(self, collate_fn: Callable[[list[Any]], Any] | None, dataset: Any) -> None:
        """The next item is going to be read: keep what the caller's `collate_fn` keeps, if it is to be examined.

        What the dataset keeps is not looked at, wherever it is met.
        """
        self._begin_looks()
        self._programs.before_draw(collate_fn, dataset)
        self._dataset_reads.before_draw(dataset, is_look=self._looks.wanted)
        is_due = self._looks.wanted or not self._collate_is_known
        root = functions_of_others() if is_default(collate_fn) else collate_fn  # torch's own keeps nothing
        if is_due and root and self._collate_before is None:
            self._collate_before = State(root, parameters=False, aside=dataset)

    def examine_collate(self, drawn: Drawn) -> None:
        """Probe the caller's `collate_fn` on the first records drawn, at least two, and on some of later batches.

        It is probed again as soon as records differ in length, or one is much shorter beside the longest than before.

        They are read once more. Where it fills a buffer of its own, that holds the item again afterwards.

        Raises:
            CrossSampleLeakError: it mixes records, or keeps what follows them.
        """
        self._begin_looks()
        is_new = self._spread.note(drawn.extents[: len(drawn.indices)]) or self._looks.wanted
        if is_new or not self._reads_are_known:
            with self._findings_told():
                untold = require_separate_reads(drawn)
            self._reads_are_known = len(drawn.indices) > 1
            self._note([] if untold is None else [untold])
        self._examine_dataset(drawn)
        is_due = is_new or not self._collate_is_known
        before, self._collate_before = self._collate_before, None
        collate_fn = drawn.collate_fn or default_collate
        if len(drawn.indices) < 2 or not is_due:
            return
        if is_default(collate_fn) and self._is_torchs_alone(drawn):
            self._collate_is_known = True
            return
        if any(tensor.is_nested for _, tensor in tensors_at(drawn.item)):
            raise nested_is_given("collate_fn")
        # Asked again after a refusal, it is refused again: from the same state.
        self._collate_before, self._collate_is_known = before, False
        root = functions_of_others() if is_default(collate_fn) else collate_fn
        before = before or State(root, parameters=False, aside=drawn.dataset)
        runs = CollateRuns(collate_fn, before, turn=self._collate_turns)
        found = None
        with kept_values(drawn.item), runs.begun(), self._findings_told():
            found = require_separate_records(runs, drawn, is_first=not self._collate_turns)
        self._collate_turns += 1
        self._note([*runs.state.unread, *runs.untold])
        self._collate_before = None
        if found is not None:
            self._collate_is_known = True
            self._form = found
        self._statistics |= runs.statistics - {*self._form.axes, *self._form.roles}

    def _note(self, untold: Iterable[str]) -> None:
        """Keep what could not be told, each once however often it is met."""
        self._notes.update(dict.fromkeys(untold))

    def _examine_dataset(self, drawn: Drawn) -> None:
        with self._findings_told():
            self._dataset_reads.examine(drawn)
        if self._dataset_reads.keeps:
            self._read[KEPT_BY_DATASET] = None
        self._note(self._dataset_reads.untold)

    def _is_torchs_alone(self, drawn: Drawn) -> bool:
        """Return whether torch's own collate function runs no code of others on records like the first one drawn."""
        if functions_of_others():
            return False
        if drawn.records is not None:
            return is_plain(drawn.record(0))
        with forked_randomness([], SEED):  # of a copy: a dataset may keep which record it has read last
            return is_plain(copied_or_itself(drawn.dataset)[drawn.indices[0]])

    @property
    def report(self) -> ProbeReport:
        """What was done so far."""
        return ProbeReport(
            forwards=self._forwards,
            calls=self._call_count,
            criteria=self._evaluations.examined,
            examined=any(self._examined.values()),
            looks=self._look_count,
            look_forwards=self._look_forwards,
            notes=tuple(self._notes),
        )

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What this session took on trust so far, in the order in which it came about."""
        return (
            *self._scalar_loss.conditions,
            *self._read,
            *([LOSSES_CHANGE] if self._programs.have_changed else []),
            *map(not_examined, self._programs.untold_of_places),
            *(not_examined(f"the loop's own calls, since {why}") for why in self._programs.untold),
            *(not_examined(note) for note in self._notes),
        )

    @property
    def open_conditions(self) -> tuple[Condition, ...]:
        """What would be on trust if the session ended now; a later batch may still show it."""
        never = bool(self._examined) and not any(self._examined.values())
        return (
            *([NEVER_EXAMINED] if never else []),
            *self._row_order.on_trust,
            *([VALUES_READ] if self._programs.may_have_read else []),
            *map(not_examined, self._programs.untold_of_padding),
        )

    def _findings_told(self) -> AbstractContextManager[None]:
        return self._told

    def _tell(self, error: HushgradError) -> bool:
        self._programs.stop()
        if self._is_split and not self._is_ending:
            self._kept_back = self._kept_back or error
            return True
        self._require_others(error)
        self.on_finding(error)
        return False

    def _require_others(self, error: HushgradError) -> None:
        """Raise `PeerFailedError` where what failed, and is said of a model, was a message to a process that is gone.

        Where it is the model's, it fails in all processes of a row.
        """
        if error.__context__ is not None and not isinstance(error.__context__, HushgradError):
            self._across.least(0)

    def _is_so_anywhere(self, what: bool) -> bool:
        """Return whether it is so in any process of the row: all examine a call alike, and divide its losses or not."""
        return not self._across.least(int(not what))

    def _require_same_inputs(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """Refuse a forward for which processes of a row were given other values, or the same in another order.

        A row of its outputs would then be made of one record here and of another one there.

        Raises:
            DesyncError: in all processes of the row.
        """
        if self._across is NOWHERE:
            return
        item = () if self._drawn is None else self._drawn.item
        given = [tensor for _, tensor in tensors_at((item, args, kwargs))]
        if not self._across.agree_on(digest_of(digest(given))):
            raise DesyncError(
                "processes that have parts of one layer were given other values of the same records, or another order "
                "of them",
                where="the forward of a tensor parallel model",
                cure="Augment and order records by the same random numbers in all processes of a row: seed torch, "
                "NumPy and random alike in them, or draw from the record's index in the dataset",
            )

    def _begin_looks(self) -> None:
        """Decide once for each batch whether it is looked at."""
        if not self._has_begun:
            self._has_begun = True
            self._looks.begin()

    def _is_due(self, pending: Pending, size: int) -> bool:
        if not pending.call.has_returned or (not pending.call.is_training and not pending.call.reached):
            return False  # left by an exception; an evaluation between two batches
        if pending.is_look:
            return size > 1
        known = self._examined.get(pending.signature)
        return known is None or (size > 1 and not known)

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
        probed.axes, probed.drawn, probed.novelty = self._axes, self._drawn, self._novelty
        probed.positions, probed.cuts = self._positions, self._programs.cuts | self._novelty.cuts
        probed.recorded, probed.recorded_rows, probed.is_divided = self._recorded, self._rows, self._is_divided
        probed.is_hooked_by_loop = self._programs.change_gradients
        probed.across, probed.sparse = self._across, self._sparse
        return probed

    def _look(self, pending: Sequence[Pending], size: int) -> None:
        """Examine a few examples of calls: of those for which the first batch had no room, and of later ones."""
        probed = self._probed()
        for part in pending:
            look(probed, part.call, size, self._looks.some(size, size))
            self._novelty.examined(part.call.module)
        self._look_count += len(pending)
        self._look_forwards += probed.forwards
        self._note(probed.skipped)

    def _examine(self, pending: Sequence[Pending], evaluations: Sequence[Evaluation], size: int) -> None:
        probed = self._probed()
        probed.keeps_runs = len(pending) == 1 and bool(evaluations)
        for part in pending:
            self._is_told &= examine(probed, part.call, size)
            if not evaluations:
                part.call.output = None  # nobody asks it any more, and what holds the call may live longer
        if pending:
            self._forwards = max(self._forwards, probed.forwards / len(pending))
        self._call_count += len(pending)
        self._note(probed.skipped)
        for evaluation in evaluations:
            runs, output = (probed.runs, pending[0].call.output) if len(pending) == 1 else (None, None)
            self._note(self._evaluations.examine(evaluation, size, runs, output))
        for part in pending:
            self._novelty.examined(part.call.module)
            self._examined[part.signature] = size > 1 and self._is_told
            if part.frozen:
                self._frozen[part.signature] = part.frozen


def _holds(inputs: Any, size: int) -> bool:
    """Whether inputs hold as many examples as there are losses; capture says what is wrong where they do not."""
    shapes = [tensor.shape for _, tensor in tensors_at(inputs) if tensor.ndim]
    return any(shape[0] == size or (len(shape) > 2 and shape[1] == size) for shape in shapes)


def _weakly(method: Callable[[], bool]) -> Callable[[], bool]:
    """Return a call of a method for hooks, whose graph its object may be held by; False once the object is gone."""
    known = weakref.WeakMethod(method)

    def call() -> bool:
        found = known()
        return found is not None and found()

    return call
