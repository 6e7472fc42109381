"""A session joins a mechanism to a model and an optimizer: sums while the loop runs backward, noise when it steps.

Between backward and step the clipped sums live here and `p.grad` shows nothing of them, so that nobody can log, rescale
or clip again a gradient without noise. The order of a step is: charge, then noise, then the user's own update.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.accounting.accountants import DEFAULT_ACCOUNTANT
from hushgrad.accounting.conditions import (
    CLOSED,
    DECLARED_PUBLIC,
    ROUNDED_TOGETHER,
    STREAM,
    Condition,
    third_party,
)
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.guarantee import Guarantee
from hushgrad.accounting.ledger.contract import OBSERVED
from hushgrad.accounting.ledger.receipt import Receipt
from hushgrad.accounting.ledger.records import LedgerHead
from hushgrad.arguments import positive_number
from hushgrad.errors import (
    ClosedSessionError,
    HushgradError,
    LedgerError,
    ProtocolError,
    UnsupportedModelError,
)
from hushgrad.guards.monitoring.noise import NoiseMonitor
from hushgrad.guards.monitoring.sensitivity import SensitivityMonitor
from hushgrad.guards.probing.batch_probe import ProbeReport
from hushgrad.losses import PerExampleLoss
from hushgrad.mechanism import Mechanism
from hushgrad.notebook import facts
from hushgrad.parallel.agreement import require_agreement, together
from hushgrad.parallel.messages import told_by_first
from hushgrad.parallel.replicas import digest, state_digest
from hushgrad.parallel.shards import put_together
from hushgrad.releases.query import Query
from hushgrad.releases.released import Released
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.stream import StreamLoader
from hushgrad.sampling.torch_loader import LoadingOptions
from hushgrad.session.beside import released_beside
from hushgrad.session.checkpoint import Checkpoint, Resumed, Stateful, require_whole_states, save
from hushgrad.session.declared import DeclaredLoop
from hushgrad.session.loaders import loader_of, loader_over
from hushgrad.session.loop import Loop, require_losses
from hushgrad.session.observed import ObservedLoop
from hushgrad.session.others import Others
from hushgrad.session.parts import Parts
from hushgrad.session.paused import frozen_for_a_while
from hushgrad.session.release import note_monitors, note_noise, note_sensitivity, release
from hushgrad.session.shown import facts_of, line_of
from hushgrad.session.step_hooks import StepHooks
from hushgrad.session.update import Written
from hushgrad.torch_sharding import recover, settle


class Session:
    """Private training of one model, from `privatize` until `close`."""

    last_step_updated = False
    """Whether the last `optimizer.step()` ended a logical batch; learning-rate schedules step only then."""

    def __init__(self, parts: Parts, model: nn.Module, optimizer: Optimizer) -> None:
        """Attach to the model and the optimizer that `parts` were set up for; users call `privatize`."""
        self._parts = parts
        self._model, self._optimizer = model, optimizer
        self._loop: Loop = DeclaredLoop(self._parts)
        self._closed = False
        self._others = Others(parts, optimizer)
        self._at_checkpoint = threading.Lock()
        self._hooks = StepHooks(
            optimizer,
            start=self._start_step,
            prepare=self._prepare_step,
            finish=self._finish_step,
            abandon=self._abandon_step,
            failed=self._others.failed,
        )
        self._parts.probe.on_finding = self._found
        self._parts.members.join(self)

    def __repr__(self) -> str:
        return line_of(self)

    def _repr_html_(self) -> str:
        return facts(f"Private training of {type(self._model).__name__}", facts_of(self))

    # The loop --------------------------------------------------------------------------------------------------------

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
        self._loop.backward(require_losses(losses))

    def loss(self, losses: Tensor, *, scale: float = 1.0) -> Tensor:
        """Return the sum of `losses` as a scalar, for a loop whose `backward` is called by somebody else.

        Its backward does what `backward(losses)` does. It is checked to receive a gradient of exactly 1, or of `scale`
        where the loop divides it by a constant on the way.

        Guarantee: what each loss gets is a constant, whatever gradient came: one that is not `scale` is refused.

        Args:
            losses: `[b]`, one loss per example of the item in work.
            scale: what the loop multiplies the scalar by, > 0, a public constant (1/n for n steps of gradient
                accumulation).

        Raises:
            LossShapeError: not one number per example.
            ProtocolError: out of turn, or without a loader of this session; from the backward, another gradient.
        """
        self._require_open()
        return self._loop.loss(require_losses(losses), positive_number("scale", scale))

    def end_item(self) -> None:
        """End the loader's item in work: its clipped sum joins its logical batch.

        A loop that calls this for every item calls `optimizer.step()` once for each logical batch
        (`loader.logical_batches()`), so that the number of steps shows nothing of the draws.

        Raises:
            ProtocolError: out of turn, or without a loader of this session.
        """
        self._require_open()
        with self._others.telling(), self._others.in_all("end of an item", self._loop.latest):
            self._loop.end_item()

    def per_example(self, criterion: nn.Module | Callable[..., Tensor]) -> PerExampleLoss:
        """Return a criterion that is checked to give one loss per example (see `PrivacyEngine.per_example`)."""

        def size() -> int | None:
            return None if self._loop.item is None else self._loop.item.size

        reduction = self.mechanism.loss_reduction
        return PerExampleLoss(
            criterion,
            loss_reduction=reduction,
            batch_size=size,
            observer=self._parts.probe,
            reduced=lambda losses: self._loop.reduced(losses),
        )

    def regularizer(self, fn: Callable[[], Tensor], *, weight: float) -> None:
        """Declare a term of the parameters alone: `weight` · its gradient is added to every update, after the noise.

        For what is no loss of an example: a proximal term, a Bayesian prior, a penalty that `weight_decay` is not. `fn`
        is written down now, as torch's operators on the parameters and on copies of all else that it reads, and never
        called again. The library runs these operators once for each logical batch, empty draws too, and adds their
        gradient after noise and division. So a term costs no privacy and changes no sensitivity, and is never to be
        added to the loss of the loop::

            first = [p.detach().clone() for p in model.parameters()]
            session.regularizer(
                lambda: sum((p - q).square().sum() for p, q in zip(model.parameters(), first)), weight=0.1
            )

        With loss_reduction="sum" the update is not divided, and the term stands beside the sum of the losses.

        Args:
            fn: without arguments; returns a floating-point scalar of the model's parameters, and of tensors as they are
                now, of which copies are kept. Declared before the first batch.
            weight: greater than 0.

        Raises:
            InvalidArgumentError: no such function: it reads something else, writes to parameters, draws random numbers,
                decides on values, or has a gradient that is not its operators'.
            ProtocolError: a batch was handed out already, so `fn` may hold its values.
        """
        self._require_open()
        if self._parts.is_split:
            raise UnsupportedModelError(
                "a term of parameters that are split over the processes is not supported",
                where="session.regularizer",
                cure="Take the optimizer's weight_decay, or train the model whole, in DistributedDataParallel",
            )
        self._parts.regularizers.declare(fn, weight)

    def public(self, tensor: Tensor) -> Tensor:
        """Declare a tensor that the model, or a criterion, is given beside the batch: the same for all batches.

        A mask over positions, features or weights of classes: by its shape it could as well hold means or counts of
        the records in work, so without a declaration it is refused. Declared before the loop, it is a constant::

            mask = session.public(nn.Transformer.generate_square_subsequent_mask(T))
            for x, y in loader:
                loss = criterion(model(x, mask), y)

        Buffers of the model, and what a forward makes itself, need none. That the tensor holds nothing of the records
        is on trust, and every guarantee says so.

        Args:
            tensor: as the model will be given it, on its device: this object, no view or copy of it. Nobody writes to
                it from here on.

        Returns:
            The same tensor.

        Raises:
            InvalidArgumentError: no dense tensor, or one that requires gradients.
            ProtocolError: a batch was handed out already, whose values it may hold.
            ContractChangedError: from here, a forward or a step: a declared tensor was written to.
        """
        self._require_open()
        self._parts.public.declare(tensor)
        return tensor

    def discard(self) -> None:
        """Drop what was summed since the last update and end the logical batch. What was charged stays charged.

        For a loop that was interrupted, never for batches that are not liked: whether a batch is dropped must not
        depend on its examples (their loss, their number, memory that ran out), because ε holds for the batches that
        were drawn and not for a choice of them. `guarantee` says how many were dropped.
        """
        if not self._closed:
            self._count_open_batch()
        recover(self._parts.sharded)
        self._loop.discard()
        self._parts.update.drop()
        self._parts.marks.take_away()
        for parameter in self._parts.parameters.values():
            parameter.grad = None
        if not self._closed:
            self._others.after_discard()

    def _count_open_batch(self) -> None:
        if self._loop.is_open:
            self._parts.spending.discard()

    def paused(self) -> AbstractContextManager[None]:
        """Run forwards and backwards through the model that are not for its own update (a generator's step, say).

        Inside, its parameters require no gradient: gradients pass through them and nothing is recorded.
        """
        return frozen_for_a_while(self._parts.parameters.values(), self._parts.sharded)

    # The loader ------------------------------------------------------------------------------------------------------

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
            steps_per_pass: logical batches in one pass; by default the number of records (of users, where whole users
                are drawn) over B, rounded up, or len(batches).
            batches: for a sampling that takes the caller's own (`DisjointBatches`), the batches of indices.
            options: workers, pinning and `collate_fn`.
            max_physical_batch_size: the most records in one item; None for all.
            constant_shapes: whether every item has exactly that many rows, padding of weight 0 included (see
                `PrivateLoader`).
        """
        with together(self._parts.world, "loader", {}):
            observer = self._observer()
            loader = loader_over(
                self._parts,
                dataset,
                observer,
                steps_per_pass=steps_per_pass,
                batches=batches,
                options=options,
                max_physical_batch_size=max_physical_batch_size,
                constant_shapes=constant_shapes,
            )
        self._observe(observer, loader)
        return loader

    def batches_of(
        self, data_loader: Any, *, max_physical_batch_size: int | None = None, constant_shapes: bool = False
    ) -> PrivateLoader | StreamLoader:
        """Return a loader with the dataset, workers and `collate_fn` of a DataLoader (see `PrivateLoader`).

        Over an `IterableDataset`, with `DisjointBatches`, the loader hands out the stream's own batches, each record
        once in a pass (see `StreamLoader`).

        `data_loader` may also be what `read_data_loader` read of one.
        """
        with together(self._parts.world, "loader", {}):
            observer = self._observer()
            loader = loader_of(
                self._parts,
                data_loader,
                observer,
                max_physical_batch_size=max_physical_batch_size,
                constant_shapes=constant_shapes,
            )
        self._observe(observer, loader)
        return loader

    def _observer(self) -> ObservedLoop:
        self._require_open()
        if self._parts.spending.is_open:
            raise ProtocolError(
                "a session has one loader, made before its first backward", cure="Iterate over that loader again"
            )
        return ObservedLoop(self._parts, self._require_open, self._others)

    def _observe(self, loop: ObservedLoop, loader: PrivateLoader | StreamLoader) -> None:
        facts = {
            "number of records": loader.population,
            "max_physical_batch_size": loader.max_physical_batch_size,
            "constant_shapes": loader.constant_shapes,
        }
        require_agreement(self._parts.world, facts)
        self._parts.spending.open(OBSERVED, loader.population)
        if loader.population is None:
            self._parts.spending.trust([STREAM])
        self._parts.spending.trust(self._parts.mechanism.sampling.on_trust)
        self._parts.probe.end_item()  # until an item comes, forwards belong to none
        loop.dataset, loop.collate_fn = loader.dataset, loader.options.collate_fn
        loop.has_constant_shapes = loader.constant_shapes
        self._loop = loop

    @property
    def current_batch(self) -> PhysicalBatch | None:
        """The loader item that is being worked on, if any; once it has ended, the last one until the step."""
        return self._loop.latest

    @property
    def is_closed(self) -> bool:
        """Whether it was closed: the model is an ordinary one again, and another session may take it."""
        return self._closed

    # Beside the steps ------------------------------------------------------------------------------------------------

    def release(
        self,
        query: Query,
        data: Any = None,
        *,
        noise_multiplier: float | None = None,
        epsilon: float | None = None,
        delta: float | None = None,
    ) -> Released:
        """Release a statistic of all records, clipped, with noise, and charged in this session's ledger.

        For what is read off the records beside training: the accuracy on them, means for a normalisation, a histogram
        of classes, a head by least squares::

            right = session.release(releases.Accuracy(model), noise_multiplier=20)
            print(right.answer, session.epsilon(1e-5))  # training and this

        It counts as no step. A plan with a target of ε does not know of it: it is charged on top of the plan, and into
        a `Budget`, which then ends training earlier.

        Guarantee: one record moves the sum by at most the sensitivity of the query; the noise on it has the standard
        deviation σ · sensitivity · (1 + 2**-12), and is drawn after the charge is on disk.

        Args:
            query: what is asked (`Count`, `Sum`, `Mean`, `Histogram`, `Tally`, `Normalisation`, `Accuracy` or
                `LeastSquares`).
            data: one entry for each record; by default the dataset of this session's loader. Its length is public.
            noise_multiplier: σ > 0; or
            epsilon, delta: what the release may cost by itself.

        Raises:
            InvalidArgumentError: no query, no noise or no data.
            CrossSampleLeakError: what is read of a record follows from others, too.
            BudgetExhaustedError: it does not fit into the budget; nothing was charged.
            ProtocolError: inside a logical batch or a step.
            UnsupportedModelError: in several processes.
            ContractChangedError: the ledger protects another unit than one record.
        """
        with self._between_steps("release a statistic"):
            return released_beside(
                self._parts,
                query,
                self._loop.dataset if data is None else data,
                noise_multiplier=noise_multiplier,
                epsilon=epsilon,
                delta=delta,
            )

    # Coming back -----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Return a receipt of what was spent, as plain values: to be kept beside weights, and checked with them.

        It holds the number of steps and the last record of the ledger, of an adaptive clip rule the clip norm of the
        next step, which is public, and never a key, a draw or a sum.

        Raises `ProtocolError` where no ledger was begun yet (a session without a loader, before its first backward).
        """
        return self._receipt().as_state()

    def _receipt(self) -> Receipt:
        return replace(self._parts.spending.receipt(), clip_norm=self._parts.update.norm.current)

    def load_state_dict(self, state: dict[str, Any]) -> int:
        """Check that this session goes on with the account of `state`; return how many steps were lost since.

        Nothing is set back: steps that came after the receipt were charged before they were released, and stay charged.

        Guarantee: weights whose steps this session's ledger does not hold are refused.

        Args:
            state: what `state_dict` returned.

        Raises:
            CheckpointError: it is no receipt.
            LedgerError: the ledger is missing, was cut, or is that of another run.
            ProtocolError: inside a logical batch or a step, or beside another checkpoint.
        """
        with self._others.telling(), self._between_steps("load a state"):
            receipt = Receipt.from_state(state)
            self._parts.update.norm.require(receipt.clip_norm)
            lost = self._parts.spending.lost_since(receipt)
            self._parts.update.norm.restore(receipt.clip_norm)
            return lost

    @property
    def lost_steps(self) -> int:
        """How many steps came after the state or checkpoint that was loaded last; they stay charged. 0 without one."""
        return self._parts.spending.lost_steps

    def save_checkpoint(
        self, path: str | os.PathLike[str], *, schedulers: Sequence[Stateful] = (), extra: Any = None
    ) -> None:
        """Write model, optimizer, schedulers and the receipt of what they cost to one file; return when it is on disk.

        Tensors are in safetensors format, all else is JSON: nothing is pickled. The file is replaced in one step. All
        of it is made from noised updates, and what `extra` holds is the caller's: keep training data out of it.
        Of several processes the first one writes; all of them call it. Of a sharded model every tensor is put together,
        one at a time, so that the file can be loaded in any number of processes; the first one holds all of it.

        Args:
            path: a file; its folder is made where it is missing.
            schedulers: learning-rate schedulers, or whatever has `state_dict` and `load_state_dict`.
            extra: plain values of the caller's (the number of the epoch, say).

        Raises:
            CheckpointError: a value cannot be written without pickle, or the file cannot be written.
            ProtocolError: inside a logical batch or a step, or beside another checkpoint.
        """
        with self._others.telling(), self._between_steps("write a checkpoint"):
            world, model, optimizer = self._parts.world, self._model, self._optimizer
            if self._parts.is_split:
                with together(world, "beginning of a checkpoint", {}):
                    states = model.state_dict(), optimizer.state_dict()
                    require_whole_states(optimizer)
                states = put_together(world, states)
            else:
                states = None
            told_by_first(
                world,
                "writing of a checkpoint",
                lambda: save(path, self._receipt, model, optimizer, schedulers, extra, states),
            )

    def load_checkpoint(self, path: str | os.PathLike[str], *, schedulers: Sequence[Stateful] = ()) -> Resumed:
        """Go on from a checkpoint, once its receipt was found in this session's ledger.

        Guarantee: a checkpoint that cannot be continued is refused before anything is changed.

        Args:
            path: what `save_checkpoint` wrote.
            schedulers: as many as it was given, in its order.

        Raises:
            CheckpointError: it is damaged, or one of another model or optimizer.
            LedgerError: the ledger is missing, was cut, or is that of another run.
            ProtocolError: inside a logical batch or a step, or beside another checkpoint.
        """
        with self._others.telling(), self._between_steps("load a checkpoint"):
            world = self._parts.world
            with together(world, "reading of a checkpoint", {}):
                checkpoint = Checkpoint.read(path)
                self._parts.update.norm.require(checkpoint.receipt.clip_norm)
            lost = self._parts.spending.lost_since(checkpoint.receipt)
            with together(world, "loading of a checkpoint", {"lost steps": lost}):
                checkpoint.load(self._model, self._optimizer, schedulers)
                self._parts.update.norm.restore(checkpoint.receipt.clip_norm)
                self._parts.left_alone.restored()
            if not world.is_alone:
                weights, state = digest(self._parts.parameters.values()), state_digest(self._optimizer)
                require_agreement(
                    world, {"checkpoint: values of the weights": weights, "state of the optimizer": state}
                )
        return Resumed(checkpoint.receipt.steps, lost, checkpoint.extra)

    @contextmanager
    def _between_steps(self, what: str) -> Iterator[None]:
        """Refuse to do something inside a logical batch, a step, or another checkpoint that a signal came into."""
        self._require_open()
        where = "inside a logical batch" if self._loop.is_open else "inside optimizer.step()"
        if self._loop.is_open or self._hooks.is_running:
            raise ProtocolError(
                f"this would {what} {where}",
                cure="Do it after optimizer.step() and before the next item (a signal's handler sets a flag that the "
                "loop looks at there); after an interrupt call session.discard()",
            )
        if not self._at_checkpoint.acquire(blocking=False):
            raise ProtocolError(
                f"this would {what} while another one is written or loaded", cure="Do one after the other"
            )
        settle(self._parts.sharded)
        try:
            yield
        finally:
            self._at_checkpoint.release()

    # What was spent --------------------------------------------------------------------------------------------------

    @property
    def mechanism(self) -> Mechanism:
        """What every step does and costs."""
        return self._parts.mechanism

    @property
    def steps(self) -> int:
        """The number of steps charged, those of earlier sessions with the same ledger included."""
        return self._parts.spending.steps

    @property
    def steps_left(self) -> int | None:
        """How many more steps are planned and fit into the budget; None where nothing limits them.

        Where passes over the data are charged, those left of the pass that this session is in and of all that may be
        begun; for `DisjointBatches`, whose passes have no number of steps, see `passes_left`. Before the first batch is
        drawn the budget is not counted yet.
        """
        return self._parts.spending.steps_left

    @property
    def passes_left(self) -> int | None:
        """How many more passes over the data may be begun; None where nothing limits them, as where steps are charged.

        A pass that was broken off, by a crash or a stop, is charged whole.
        """
        return self._parts.spending.passes_left

    @property
    def clip_norm(self) -> float:
        """The clip norm of the next step, C_t of an adaptive rule: a function of what was released, so it is public."""
        return self._parts.current.sensitivity

    @property
    def noise_is_observed(self) -> bool:
        """Whether the noise of all steps in the ledger was drawn here, and not by another library."""
        return self._parts.spending.noise_is_observed

    @property
    def charged(self) -> list[tuple[Event, int]]:
        """What was charged, in order, as `(event, count)`; a new list."""
        return self._parts.spending.events()

    @property
    def anchor(self) -> LedgerHead | None:
        """The ledger's last record: kept elsewhere, it shows later whether records were lost. None until it opens."""
        return self._parts.spending.anchor

    @property
    def is_narrow(self) -> bool:
        """Whether gradients of the latest forwards pass through 16 bits, so that no mean over a batch may divide them.

        `backward` and `loss` see to it by themselves.
        """
        return self._loop.is_narrow

    def epsilon(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT, *, group_size: int = 1) -> float:
        """Return ε at `delta` for everything that was charged; 0 before the first step, inf without noise.

        It is inf, too, once it was found that steps before may have leaked. With a `group_size` k it is that of k
        records at once: of a person who has at most k. k times that of one is no bound: it can be too little.
        """
        return self._parts.spending.epsilon(delta, accountant, group_size)

    def guarantee(self, delta: float, accountant: str = DEFAULT_ACCOUNTANT, *, group_size: int = 1) -> Guarantee:
        """Return the guarantee at `delta` with its conditions; `str()` of it is the full sentence.

        With a `group_size` k it is for k records at once.
        """
        trusted = [*self._trusted(), *self._parts.probe.open_conditions, *([CLOSED] if self._closed else [])]
        return self._parts.spending.guarantee(delta, accountant, trusted, group_size)

    def trust(self, condition: Condition) -> None:
        """Leave in ledger and guarantee something that the caller takes on trust, once.

        Raises `LedgerError` where it could not be made durable.
        """
        self._parts.spending.trust([condition])

    @property
    def written(self) -> Written:
        """What is public of the last update beside the gradients: how much noise is in it, and the noised count."""
        return self._parts.update.written

    @property
    def noise_monitor(self) -> NoiseMonitor:
        """What was measured of the noise of the steps so far."""
        return self._parts.update.monitor

    @property
    def sensitivity_monitor(self) -> SensitivityMonitor:
        """What looks at one example of every hundredth update."""
        return self._parts.update.sensitivity_monitor

    @property
    def probe_report(self) -> ProbeReport:
        """What was done to establish that no example influences another's loss, and what it cost."""
        return self._parts.probe.report

    def _trusted(self) -> list[Condition]:
        """Return what was taken on trust so far: by the probe, of operators that were registered, and of 16 bits."""
        operators = (third_party("operator", name) for name in sorted(self._parts.scope.registered))
        rounding = [ROUNDED_TOGETHER] if self._loop.rounds_together else []
        parts = self._parts
        return [
            *parts.probe.conditions,
            *parts.frozen.conditions,
            *parts.left_alone.conditions,
            *parts.regularizers.conditions,
            *parts.decided_in_forward,
            *([DECLARED_PUBLIC] if parts.public else []),
            *parts.loss_scale.conditions,
            *operators,
            *rounding,
        ]

    # The step, and the end -------------------------------------------------------------------------------------------

    def _start_step(self) -> None:
        self._require_open()
        self.last_step_updated = False
        self._parts.frozen.expect_nothing()  # of a step that was interrupted
        self._parts.left_alone.step_begins(self._hooks.later)

    def _prepare_step(self) -> None:
        """End the physical batch in work, and release the noised update where its logical batch is complete."""
        self._require_open()  # a closure came before
        with self._others.in_all("step", self._loop.latest):
            self._parts.take_marks()
            turn = self._loop.end_step()
        if turn is None:
            self._parts.frozen.expect_no_update()
            return
        release(self._parts, turn, self._trusted, self._others.told_with)
        self.last_step_updated = True

    def _finish_step(self) -> None:
        self._parts.update.clear()
        settle(self._parts.sharded)  # a hook of the loop's may have run the model inside the step
        self._parts.frozen.require_expected_update()
        self._parts.frozen.require_moved_weights()
        if self.last_step_updated:
            self._parts.left_alone.updated()
            self._parts.members.step_taken(self._parts.spending.steps, self._parts.spending.uncounted)

    def _abandon_step(self) -> None:
        """The step is refused in its middle: take the update away again. The charge stands."""
        self._parts.update.clear()
        self._parts.frozen.expect_nothing()

    def close(self) -> None:
        """Give back an ordinary model and optimizer, and close the ledger. What was spent can still be read.

        A logical batch that was begun is dropped, and counted as `discard` counts it. Of several processes all call it:
        what each has taken on trust since the last release is then left in the ledger.
        """
        if self._closed:
            return
        self._closed = True
        parts = self._parts
        parts.scope.detach()
        recover(parts.sharded)
        self._hooks.remove()
        parts.members.leave()
        if parts.spending.is_open:
            parts.members.remember(parts.spending.steps, parts.spending.uncounted)
        parts.update.clear()
        parts.marks.take_away()
        self._loop.close()
        parts.update.drop()
        parts.probe.forget()
        with suppress(HushgradError):
            parts.probe.raise_kept_back()
        self._count_open_batch()
        with suppress(LedgerError):  # no ε depends on a note, and what was charged is on disk
            note_noise(parts)
            if parts.update.number:
                note_sensitivity(parts)
            note_monitors(parts)
            parts.spending.trust([*self._trusted(), *parts.probe.open_conditions])
        self._others.at_close()
        parts.spending.close()

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedSessionError("this session was closed", cure="Call privatize or make_private again")
        self._parts.spending.require_established()

    def _found(self, error: HushgradError) -> None:
        """The model or the loss was found to mix examples: steps before may have leaked as this batch would have.

        Nothing is released any more. Where no step was charged yet the error is an ordinary refusal.
        """
        self._others.finding = error
        if self._parts.spending.steps:
            self._parts.members.not_established()
        self._parts.spending.not_established(error)
        if not self._closed:  # nobody waits for what is found then
            self._others.failed(error)
