"""Joins a mechanism to a model and an optimizer: sums while the loop runs backward, noise when it steps.

Between backward and step the clipped sums live here and `p.grad` shows nothing of them, so that nobody can log, rescale
or clip again a gradient without noise. The order of a step is: charge, then noise, then the user's own update.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from types import NoneType
from typing import Any, get_args

from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.weak import WeakIdKeyDictionary

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.budget import Budget
from hushgrad.accounting.conditions import CLOSED, Condition, third_party
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.ledger import DECLARED, OBSERVED
from hushgrad.accounting.ledger.records import Anchor
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.clipping.flat import FlatClipping
from hushgrad.errors import (
    ClosedSessionError,
    InvalidArgumentError,
    LedgerError,
    LossShapeError,
    NoiseMismatchError,
    ProtocolError,
    SensitivityMismatchError,
    UnsupportedModelError,
)
from hushgrad.gradients.contribution import Plan
from hushgrad.guards.compatibility import require_trainable_privately
from hushgrad.guards.gradient_marks import GradientMarks
from hushgrad.guards.in_use import claim, release
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.monitor import Monitor, Monitors
from hushgrad.guards.monitoring.noise import NoiseMonitor
from hushgrad.guards.monitoring.sensitivity import SensitivityMonitor
from hushgrad.guards.probing.probe import Probe, ProbeReport
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.mechanism import DPSGD
from hushgrad.randomness import KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.specs import RandomSampling, Sampling, TruncatedPoissonSampling
from hushgrad.sampling.torch_loader import LoadingOptions, dataset_length, read_data_loader
from hushgrad.session.padding import without_padding
from hushgrad.session.protocol import DeclaredLoop, ObservedLoop
from hushgrad.session.spending import Spending
from hushgrad.session.step_hooks import StepHooks
from hushgrad.session.update import Update

NOISE, SENSITIVITY = "noise monitor", "sensitivity monitor"

_left_by_earlier = WeakIdKeyDictionary()
"""For those of closed sessions: the path of the ledger, its steps, and the steps that were not in it either."""


def privatize(
    model: nn.Module,
    optimizer: Optimizer,
    mechanism: DPSGD,
    *,
    ledger: str | os.PathLike[str] | None = None,
    key: KeyStream | None = None,
    plan: Plan | None = None,
    budget: Budget | None = None,
    lease: int = 1,
    monitors: Sequence[Monitor] = (),
) -> Session:
    """Attach a mechanism to a model and its optimizer; both stay the caller's own objects.

    Args:
        model: in training mode.
        optimizer: any torch optimizer over all trainable parameters, but LBFGS and SparseAdam.
        mechanism: what every step does and costs.
        ledger: a path makes the record of what ran durable; an existing file is verified and continued.
        key: for tests only, `KeyStream.fixed_for_tests(seed)`; marks the ledger "NOT PRIVATE".
        plan: how norms are computed; every plan gives the same numbers.
        budget: an ε that training must not pass. `optimizer.step()` raises `BudgetExhaustedError` at the first step
            that does not fit, and updates nothing; the same step after a crash and a resume of the ledger. In passes
            over the data, for `DisjointBatches`.
        lease: how many steps are put on disk at once, which saves time; a crash over-charges fewer than that many.
        monitors: what watches the noised updates, beside the monitors that are always on.

    Raises what `require_trainable_privately` raises, before any data is read.
    """
    return Session(
        model,
        optimizer,
        mechanism,
        ledger=ledger,
        key=key,
        plan=plan,
        budget=budget,
        lease=lease,
        monitors=monitors,
    )


class Session:
    """Private training of one model, from `privatize` until `close`.

    Guarantee: an update happens only after its charge is recorded.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        mechanism: DPSGD,
        *,
        ledger: str | os.PathLike[str] | None,
        key: KeyStream | None,
        plan: Plan | None,
        budget: Budget | None = None,
        lease: int = 1,
        monitors: Sequence[Monitor] = (),
        alarms: Alarms = Alarms.RAISED,
    ) -> None:
        if not isinstance(mechanism, DPSGD):
            raise InvalidArgumentError(f"mechanism must be a DPSGD, got {type(mechanism).__name__}")
        if key is not None and (not isinstance(key, KeyStream) or key.is_secret):
            raise InvalidArgumentError(
                "key must be KeyStream.fixed_for_tests(seed), for tests. A session draws its own secret key: two "
                "sessions with one key would draw the same noise, which cancels"
            )
        self._monitors = Monitors(monitors)
        self._parameters = require_trainable_privately(model, optimizer)
        self._objects: list[object] = [optimizer, *model.modules()]
        self._mechanism = mechanism
        self.last_step_updated = False
        """Whether the last `optimizer.step()` ended a logical batch; learning-rate schedules step only then."""
        self._stream = key if key is not None else KeyStream.from_operating_system()
        self._spending = Spending(mechanism, ledger, noise_is_secret=self._stream.is_secret, budget=budget, lease=lease)
        self._spending.trust([*_third_parties(mechanism, plan), *self._monitors.conditions])
        self._ledger_path = None if ledger is None else os.path.realpath(ledger)
        left = [_left_by_earlier[part] for part in self._objects if part in _left_by_earlier]
        self._spending.uncounted = max(
            (other + (0 if path is not None and path == self._ledger_path else steps) for path, steps, other in left),
            default=0,
        )
        self._frozen = SetupInvariants(model, optimizer, self._parameters)
        self._plan = plan or Plan.of_device(next(iter(self._parameters.values())).device)
        self._update = Update(self._parameters, mechanism, self._stream.fork("noise"), self._plan, alarms)
        self._marks = GradientMarks(model, self._parameters)
        self._pool = UsePool(self._plan, outlasts_backward=False)
        self._loader: PrivateLoader | None = None
        self._observed, self._declared = ObservedLoop(), DeclaredLoop()
        self._closed = False
        self._probe = Probe(model, self._parameters, mechanism.loss_reduction)
        self._scope = Scope(model, self._pool, self._probe)
        self._probe.join(self._scope)
        self._hooks = StepHooks(
            optimizer,
            start=self._start_step,
            prepare=self._end_physical_batch,
            finish=self._finish_step,
            abandon=self._abandon_step,
        )
        claim(self._objects)

    # The loop ----------------------------------------------------------------------------------------------------

    def backward(self, losses: Tensor) -> None:
        """Run backward on the losses of one physical batch.

        Without a loader of this session each call is a physical batch of its own, disjoint from the others, and
        `optimizer.step()` ends the logical batch; losses of shape `[0]` are an empty draw. With a loader, several
        calls over one item add up per example before clipping.

        Args:
            losses: `[b]`, one loss per example.

        Raises:
            LossShapeError: not one number per example.
            ProtocolError: out of turn.
        """
        self._require_open()
        if not isinstance(losses, Tensor) or losses.ndim != 1:
            shape = list(losses.shape) if isinstance(losses, Tensor) else type(losses).__name__
            raise LossShapeError(f"losses must have shape [b], one number per example, got {shape}")
        if self._loader is not None:
            item = self._observed.require_item()
            if losses.shape[0] != item.size:
                raise LossShapeError(f"losses must have shape [{item.size}], one per record, got {list(losses.shape)}")
            self._probe.losses(losses)
            divides = self._mechanism.loss_reduction == "mean" and not self._pool.is_narrow
            before = self._pool.backwards
            (losses.mean() if divides else losses.sum()).backward()  # type: ignore[no-untyped-call]
            self._pool.undivided += 0 if divides else self._pool.backwards - before
            return
        self._spending.open(DECLARED, None)
        self._update.clear()
        self._marks.require_untouched()
        self._marks.take_away()
        self._declared.start_backward()
        if self._declared.is_new:
            self._update.drop()  # of a logical batch whose step was interrupted before its release
        self._pool.batch_size = losses.shape[0]
        try:
            if losses.shape[0] > 0:
                self._probe.losses(losses)
                losses.sum().backward()  # type: ignore[no-untyped-call]
                self._close_physical_batch(scale=1.0, size=losses.shape[0], drawn=losses.shape[0])
        finally:
            self._pool.clear()
            self._pool.batch_size = None
        self._declared.end_backward()
        self._marks.put()

    def batches(
        self,
        dataset: Any,
        *,
        steps_per_pass: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        options: LoadingOptions | None = None,
        max_physical_batch_size: int | None = None,
        constant_shapes: bool = False,
    ) -> PrivateLoader:
        """Return a loader that draws from `dataset` as the mechanism says; the sampling is then observed.

        Args:
            dataset: map-style; its length is thereby declared public.
            steps_per_pass: logical batches in one pass; by default len(dataset) / B, rounded up, or len(batches).
            batches: for `DisjointBatches`, the batches of indices.
            options: workers, pinning and `collate_fn`.
            max_physical_batch_size: the most records in one item; None for all.
            constant_shapes: whether every item has exactly that many rows, padding of weight 0 included (see
                `PrivateLoader`).
        """
        count = dataset_length(dataset)
        sampling, size = self._mechanism.sampling, self._mechanism.expected_batch_size
        if isinstance(sampling, RandomSampling) and not math.isclose(sampling.rate * count, size, rel_tol=1e-9):
            raise InvalidArgumentError(
                f"expected_batch_size must be rate x len(dataset) = {sampling.rate * count:g}, the mechanism has "
                f"{size:g}"
            )
        if steps_per_pass is None:
            steps_per_pass = math.ceil(count / size) if batches is None else len(batches)
        loader = PrivateLoader(
            dataset,
            sampling,
            steps_per_pass=steps_per_pass,
            stream=self._loader_stream(),
            batch_size=size,
            batches=batches,
            options=options,
            max_physical_batch_size=max_physical_batch_size,
            constant_shapes=constant_shapes,
            observer=self,
        )
        return self._attach_loader(loader, count, None if options is None else options.collate_fn)

    def batches_of(
        self, data_loader: Any, *, max_physical_batch_size: int | None = None, constant_shapes: bool = False
    ) -> PrivateLoader:
        """Return a loader with the dataset, workers and `collate_fn` of a DataLoader (see `PrivateLoader`)."""
        reading = read_data_loader(data_loader)
        sampling = self._mechanism.sampling
        loader = PrivateLoader.from_data_loader(
            data_loader,
            poisson_sampling=isinstance(sampling, RandomSampling),
            stream=self._loader_stream(),
            max_batch_size=sampling.max_batch_size if isinstance(sampling, TruncatedPoissonSampling) else None,
            max_physical_batch_size=max_physical_batch_size,
            constant_shapes=constant_shapes,
            observer=self,
        )
        if loader.sampling != self._mechanism.sampling or loader.batch_size != self._mechanism.expected_batch_size:
            raise InvalidArgumentError(
                f"the data loader has batch_size {loader.batch_size:g} of {reading.count} records, the mechanism "
                f"{self._mechanism.sampling} and expected_batch_size {self._mechanism.expected_batch_size:g}"
            )
        return self._attach_loader(loader, reading.count, reading.options.collate_fn)

    def discard(self) -> None:
        """Drop what was summed since the last update and end the logical batch. What was charged stays charged.

        For a loop that was interrupted, never for batches that are not liked: whether a batch is dropped must not
        depend on its examples (their loss, their number, memory that ran out), because ε holds for the batches that
        were drawn and not for a choice of them. `guarantee` says how many were dropped.
        """
        if not self._closed and (self._observed.is_open or not self._declared.is_new):
            self._spending.discard()
        self._pool.clear()
        self._pool.batch_size = None
        self._update.drop()
        self._observed.discard()
        self._declared.discard()
        self._probe.forget()
        self._probe.is_waiting = self._loader is None
        self._marks.take_away()
        for parameter in self._parameters.values():
            parameter.grad = None

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Run forwards and backwards through the model that are not for its own update (a generator's step, say).

        Inside, its parameters require no gradient: gradients pass through them and nothing is recorded.
        """
        active = [parameter for parameter in self._parameters.values() if parameter.requires_grad]
        for parameter in active:
            parameter.requires_grad_(False)
        try:
            yield
        finally:
            for parameter in active:
                parameter.requires_grad_(True)

    # What was spent ------------------------------------------------------------------------------------------------

    @property
    def mechanism(self) -> DPSGD:
        """What every step does and costs."""
        return self._mechanism

    @property
    def steps(self) -> int:
        """The number of steps charged, those of earlier sessions with the same ledger included."""
        return self._spending.steps

    @property
    def steps_left(self) -> int | None:
        """How many more steps are planned and fit into the budget; None where nothing limits them.

        For `DisjointBatches` the limit is in passes over the data, and this is None. Before the first batch is drawn
        the budget is not counted yet.
        """
        return self._spending.steps_left

    @property
    def charged(self) -> list[tuple[Event, int]]:
        """What was charged, in order, as `(event, count)`; a new list."""
        return self._spending.events()

    @property
    def anchor(self) -> Anchor | None:
        """The ledger's last record: kept elsewhere, it shows later whether records were lost. None until it opens."""
        return self._spending.anchor

    def epsilon(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> float:
        """Return ε at `delta` for everything that was charged; 0 before the first step, inf without noise."""
        return self._spending.epsilon(delta, accountant)

    def guarantee(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT) -> Guarantee:
        """Return the guarantee at `delta` with its conditions; `str()` of it is the full sentence."""
        trusted = [*self._trusted(), *self._probe.open_conditions, *([CLOSED] if self._closed else [])]
        return self._spending.guarantee(delta, accountant, trusted)

    def close(self) -> None:
        """Give back an ordinary model and optimizer, and close the ledger. What was spent can still be read."""
        if self._closed:
            return
        self._closed = True
        self._scope.detach()
        self._hooks.remove()
        release(self._objects)
        if self._spending.is_open:
            left = (self._ledger_path, self._spending.steps, self._spending.uncounted)
            _left_by_earlier.update(dict.fromkeys(self._objects, left))
        self._update.clear()
        self._marks.take_away()
        self._pool.clear()
        self._update.drop()
        self._probe.forget()
        with suppress(LedgerError):  # no ε depends on a note, and what was charged is on disk
            self._spending.note(NOISE, self._update.monitor.finding())
            if self._update.number:
                self._note_sensitivity()
            self._note_monitors()
            self._spending.trust([*self._trusted(), *self._probe.open_conditions])
        self._spending.close()

    @property
    def noise_monitor(self) -> NoiseMonitor:
        """What was measured of the noise of the steps so far."""
        return self._update.monitor

    @property
    def sensitivity_monitor(self) -> SensitivityMonitor:
        """What looks at one example of every hundredth update."""
        return self._update.sensitivity_monitor

    @property
    def probe_report(self) -> ProbeReport:
        """What was done to establish that no example influences another's loss, and what it cost."""
        return self._probe.report

    @property
    def probe(self) -> Probe:
        """What examines the model and its criteria; `PerExampleLoss` reports to it."""
        return self._probe

    # The loader's protocol -----------------------------------------------------------------------------------------

    @property
    def current_batch(self) -> PhysicalBatch | None:
        """The loader item that is being worked on, if any."""
        return self._observed.item

    def before_draw(self) -> None:
        """Refuse to read on before the loop has finished with the last item."""
        self._require_open()
        self._observed.before_draw()

    def begin(self, batch: PhysicalBatch) -> None:
        """Take note of the item that the loop is about to get."""
        self._update.clear()
        self._marks.take_away()
        self._frozen.require_same_parameters()
        self._spending.require_pass(batch.pass_index)
        if self._loader is not None:
            self._probe.examine_collate(self._loader.dataset, batch.indices, self._loader.arriving)
        self._observed.begin(batch)
        if batch.first:
            self._update.drop()  # of a logical batch whose step was interrupted before its release
        # A graph of an earlier item keeps the old pool, where a backward is refused: its examples were not drawn now.
        self._pool.clear()
        self._pool.batch_size = None
        self._pool = UsePool(self._plan, on_backward=self._marks.put)
        self._pool.batch_size = batch.size
        self._scope.record_into(self._pool)
        self._probe.begin_item(batch.size)
        if self._loader is not None and 0 < len(batch.indices) < batch.size:
            self._probe.expect_order(self._loader.arriving, batch.size)

    def lost(self, batch: PhysicalBatch) -> None:
        """Count a logical batch that was drawn and could not be read: which ones fail may depend on their examples."""
        if batch.first:  # a later item's is open, and `discard` counts it
            self._spending.discard()

    # The step ------------------------------------------------------------------------------------------------------

    def _start_step(self) -> None:
        self._require_open()
        self.last_step_updated = False
        self._frozen.expect_nothing()  # of a step that was interrupted

    def _finish_step(self) -> None:
        self._update.clear()
        self._frozen.require_expected_update()
        self._frozen.require_moved_weights()

    def _abandon_step(self) -> None:
        """The step is refused in its middle: take the update away again. The charge stands."""
        self._update.clear()
        self._frozen.expect_nothing()

    def _end_physical_batch(self) -> None:
        """Close the physical batch, and at the end of its logical batch release the noised update."""
        self._update.clear()
        self._marks.require_untouched()
        self._marks.take_away()
        if self._loader is None:
            self._frozen.require_no_surprises()
            self._declared.end_logical_batch()
            self._release()
            return
        item = self._observed.require_item()
        self._frozen.require_no_surprises()
        if self._pool.backwards == 0:
            raise ProtocolError("optimizer.step() without a finished backward for this item of the loader")
        self._frozen.require_steady_groups(item)
        self._close_physical_batch(scale=self._scale(item.size), size=item.size, drawn=len(item.indices))
        self._pool.batch_size = None
        self._observed.end_item()
        self._probe.is_waiting = False
        if item.last:
            self._release(item.pass_index)
        else:
            self._frozen.expect_no_update()

    def _scale(self, size: int) -> float:
        """Return what undoes the division of the mean loss of an item by its number of rows, padding included.

        Raises:
            UnsupportedModelError: gradients were rounded to 16 bits after that division. One record more or less would
                change the rounding of all others' gradients, and so the sum by more than the clip norm.
        """
        if self._mechanism.loss_reduction == "sum" or self._pool.undivided == self._pool.backwards:
            return 1.0
        if self._pool.is_narrow:
            raise UnsupportedModelError(
                "a mean loss divides gradients by the number of records before they are rounded to 16 bits, so that "
                "one record changes how all others' gradients are rounded, by more than the clip norm in sum. Call "
                "session.backward(losses) with one loss per record, which divides nothing (engine.session), or use "
                'loss_reduction="sum" and divide the learning rate by the expected batch size'
            )
        return float(size)

    def _close_physical_batch(self, *, scale: float, size: int, drawn: int) -> None:
        """Add the clipped sum of the first `drawn` of `size` examples; those after them are padding."""
        self._scope.leave_if_stale()
        if drawn:
            if self._probe.is_due(size):  # an ordinary gradient is told by its own name, not as a leak
                self._frozen.require_no_surprises()
            self._probe.examine(size)
        if self._loader is not None:
            self._observed.start_adding()
        uses = without_padding(self._pool.take(), drawn, size)
        if drawn:  # the record that stands in for an empty draw contributes exactly nothing
            self._follow_schedule()
            try:
                self._update.add(uses, scale)
            except SensitivityMismatchError:
                with suppress(LedgerError):
                    self._note_sensitivity()
                raise

    def _note_sensitivity(self) -> None:
        self._spending.note(SENSITIVITY, self._update.sensitivity_monitor.finding(self._update.number))

    def _follow_schedule(self) -> None:
        if self._mechanism.is_scheduled:
            self._update.follow(self._spending.current())

    def _release(self, loader_pass: int = 0) -> None:
        """Charge, then draw noise and hand the update to the optimizer."""
        try:
            self._spending.require_step()
            self._follow_schedule()
            self._spending.note(NOISE, self._update.monitor.finding_due())
            self._spending.trust(self._trusted())
            self._spending.charge(loader_pass)
        except BaseException:
            self._update.drop()
            raise
        self._frozen.expect_moved_weights()
        try:
            self._update.write()
        except NoiseMismatchError:
            with suppress(LedgerError):  # the alarm is what must be heard
                self._spending.note(NOISE, self._update.monitor.finding())
            raise
        self._show_to_monitors()
        self.last_step_updated = True

    def _show_to_monitors(self) -> None:
        """Let the monitors that were handed in see the update; what they raise takes it away again."""
        try:
            self._monitors.see(self._update.number - 1, self._update.mechanism, self._parameters)
        except BaseException:
            self._update.clear()
            with suppress(LedgerError):
                self._note_monitors()
            raise

    def _note_monitors(self) -> None:
        for about, report in self._monitors.reports():
            self._spending.note(about, report)

    # Set-up --------------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedSessionError("this session was closed. Call privatize or make_private again")

    def _trusted(self) -> list[Condition]:
        """Return what was taken on trust so far: by the probe, and of operators that were registered."""
        operators = (third_party("operator", name) for name in sorted(self._scope.registered))
        return [*self._probe.conditions, *operators]

    def _loader_stream(self) -> KeyStream:
        self._require_open()
        if self._loader is not None or self._spending.is_open:
            raise ProtocolError("a session has one loader, made before its first backward")
        return self._stream.fork("loader")

    def _attach_loader(
        self, loader: PrivateLoader, population: int, collate_fn: Callable[[list[Any]], Any] | None
    ) -> PrivateLoader:
        self._spending.open(OBSERVED, population)
        self._probe.collate_fn = collate_fn
        self._probe.is_waiting = False
        self._loader = loader
        return loader


def _third_parties(mechanism: DPSGD, plan: Plan | None) -> list[Condition]:
    """Return the parts that are classes of somebody else's: subclasses of ours may compute something else."""
    own = {
        "mechanism": (mechanism, (DPSGD,)),
        "clip rule": (mechanism.clipping, (FlatClipping,)),
        "sampling": (mechanism.sampling, get_args(Sampling)),
        "plan of norms": (plan, (Plan, NoneType)),
    }
    return [third_party(part, type(value).__name__) for part, (value, kinds) in own.items() if type(value) not in kinds]
