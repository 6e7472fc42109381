"""Joins a mechanism to a model and an optimizer: sums while the loop runs backward, noise when it steps.

Between backward and step the clipped sums live here and `p.grad` is None, so that nobody can log, rescale or clip again
a gradient without noise. The order of a step is: charge, then noise, then the user's own update.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from hushgrad.accounting.accountants import epsilon as epsilon_of
from hushgrad.accounting.events import DisjointPass
from hushgrad.accounting.guarantee import Guarantee, guarantee
from hushgrad.accounting.ledger import DECLARED, FIXED_KEY, OBSERVED, OPERATING_SYSTEM, Contract, Ledger
from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.compatibility import require_trainable_privately
from hushgrad.errors import (
    BudgetExhaustedError,
    ClosedSessionError,
    ContractChangedError,
    InvalidArgumentError,
    LossShapeError,
    ProtocolError,
    StrayGradientError,
    UnsupportedOptimizerError,
)
from hushgrad.gradients.clipped_sum import clipped_sums
from hushgrad.gradients.contribution import Plan, accumulation_dtype
from hushgrad.mechanism import DPSGD
from hushgrad.noise.gaussian import noisy_update
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.specs import DisjointBatches, PoissonSampling
from hushgrad.sampling.torch_loader import LoadingOptions, dataset_length, read_data_loader


def privatize(
    model: nn.Module,
    optimizer: Optimizer,
    mechanism: DPSGD,
    *,
    ledger: str | os.PathLike[str] | None = None,
    key: KeyStream | None = None,
    plan: Plan | None = None,
) -> Session:
    """Attach a mechanism to a model and its optimizer; both stay the caller's own objects.

    Args:
        model: in training mode.
        optimizer: any torch optimizer over all trainable parameters, but LBFGS and SparseAdam.
        mechanism: what every step does and costs.
        ledger: a path makes the record of what ran durable; an existing file is verified and continued.
        key: for tests only; `KeyStream.fixed_for_tests(seed)` marks the ledger "NOT PRIVATE".
        plan: how norms are computed; every plan gives the same numbers.

    Raises what `require_trainable_privately` raises, before any data is read.
    """
    return Session(model, optimizer, mechanism, ledger=ledger, key=key, plan=plan)


class Session:
    """Private training of one model, from `privatize` until `close`.

    Guarantee: an update happens only after its charge is recorded, and every trainable parameter gets noise in it,
    used or not.
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
    ) -> None:
        if not isinstance(mechanism, DPSGD):
            raise InvalidArgumentError(f"mechanism must be a DPSGD, got {type(mechanism).__name__}")
        self._parameters = require_trainable_privately(model, optimizer)
        self.mechanism = mechanism
        self.last_step_updated = False
        """Whether the last `optimizer.step()` ended a logical batch; learning-rate schedules step only then."""
        self._stream = key if key is not None else KeyStream.from_operating_system()
        self._noise = self._stream.fork("noise")
        self._ledger_path = ledger
        self._ledger: Ledger | None = None
        self._first_pass = 0
        self._plan = plan
        self._pool = UsePool()
        self._sums: dict[str, Tensor] = {}
        self._released = 0
        self._loader: PrivateLoader | None = None
        self._item: PhysicalBatch | None = None
        self._open_step: int | None = None
        self._physical_batches = 0
        self._update_pending = False
        self._groups: list[dict[str, Any]] | None = None
        self._closed = False
        self._optimizer = optimizer
        self._scope = Scope(model, self._pool)
        self._hooks = [
            optimizer.register_step_pre_hook(self._before_step),
            optimizer.register_step_post_hook(self._after_step),
        ]

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
            item = self._require_item()
            if losses.shape[0] != item.size:
                raise LossShapeError(f"losses must have shape [{item.size}], one per record, got {list(losses.shape)}")
            total = losses.mean() if self.mechanism.loss_reduction == "mean" else losses.sum()
            total.backward()  # type: ignore[no-untyped-call]
            return
        self._open_ledger(DECLARED, None)
        self._clear_after_update()
        self._physical_batches += 1
        if losses.shape[0] == 0:
            return
        self._pool.batch_size = losses.shape[0]
        try:
            losses.sum().backward()  # type: ignore[no-untyped-call]
            self._close_physical_batch(scale=1.0, weight=1.0)
        finally:
            self._pool.clear()
            self._pool.batch_size = None

    def batches(
        self,
        dataset: Any,
        *,
        steps_per_pass: int | None = None,
        batches: Sequence[Sequence[int]] | None = None,
        options: LoadingOptions | None = None,
        max_physical_batch_size: int | None = None,
    ) -> PrivateLoader:
        """Return a loader that draws from `dataset` as the mechanism says; the sampling is then observed.

        Args:
            dataset: map-style; its length is thereby declared public.
            steps_per_pass: logical batches in one pass; by default len(dataset) / B, rounded up.
            batches: for `DisjointBatches`, the batches of indices.
            options: workers, pinning and `collate_fn`.
            max_physical_batch_size: the most records in one item; None for all.
        """
        count = dataset_length(dataset)
        sampling, size = self.mechanism.sampling, self.mechanism.expected_batch_size
        if isinstance(sampling, PoissonSampling) and not math.isclose(sampling.rate * count, size, rel_tol=1e-9):
            raise InvalidArgumentError(
                f"expected_batch_size must be rate x len(dataset) = {sampling.rate * count:g}, the mechanism has {size:g}"
            )
        loader = PrivateLoader(
            dataset,
            sampling,
            steps_per_pass=math.ceil(count / size) if steps_per_pass is None else steps_per_pass,
            stream=self._loader_stream(),
            batch_size=size,
            batches=batches,
            options=options,
            max_physical_batch_size=max_physical_batch_size,
            observer=self,
        )
        return self._attach_loader(loader, count)

    def batches_of(self, data_loader: Any, *, max_physical_batch_size: int | None = None) -> PrivateLoader:
        """Return a loader with the dataset, workers and `collate_fn` of a DataLoader (see `PrivateLoader`)."""
        reading = read_data_loader(data_loader)
        loader = PrivateLoader.from_data_loader(
            data_loader,
            poisson_sampling=isinstance(self.mechanism.sampling, PoissonSampling),
            stream=self._loader_stream(),
            max_physical_batch_size=max_physical_batch_size,
            observer=self,
        )
        if loader.sampling != self.mechanism.sampling or loader.batch_size != self.mechanism.expected_batch_size:
            raise InvalidArgumentError(
                f"the data loader has batch_size {loader.batch_size:g} of {reading.count} records, the mechanism "
                f"{self.mechanism.sampling} and expected_batch_size {self.mechanism.expected_batch_size:g}"
            )
        return self._attach_loader(loader, reading.count)

    def discard(self) -> None:
        """Drop what was summed since the last update and end the logical batch. What was charged stays charged."""
        self._pool.clear()
        self._sums.clear()
        self._item, self._open_step, self._groups, self._physical_batches = None, None, None, 0
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
    def steps(self) -> int:
        """The number of steps charged."""
        return 0 if self._ledger is None else self._ledger.steps

    def epsilon(self, delta: float, accountant: str = "pld") -> float:
        """Return ε at `delta` for everything that was charged; 0 before the first step, inf without noise."""
        return epsilon_of([] if self._ledger is None else self._ledger.events(), delta, accountant)

    def guarantee(self, delta: float, accountant: str = "pld") -> Guarantee:
        """Return the guarantee at `delta` with its conditions; `str()` of it is the full sentence."""
        if self._ledger is None:
            return guarantee([], delta, accountant, self._contract(DECLARED, None))
        return guarantee(self._ledger.events(), delta, accountant, self._ledger.contract)

    def close(self) -> None:
        """Give back an ordinary model and optimizer, and close the ledger. What was spent can still be read."""
        if self._closed:
            return
        self._closed = True
        self._scope.detach()
        for hook in self._hooks:
            hook.remove()
        self._pool.clear()
        self._sums.clear()
        if self._ledger is not None:
            self._ledger.close()

    # The loader's protocol -----------------------------------------------------------------------------------------

    @property
    def current_batch(self) -> PhysicalBatch | None:
        """The loader item that is being worked on, if any."""
        return self._item

    def before_draw(self) -> None:
        """Refuse to read on before the loop has finished with the last item."""
        self._require_open()
        if self._item is not None:
            raise ProtocolError(
                "the next batch was asked for before optimizer.step() was called for the last one. For every item of "
                "the loader: backward, then optimizer.step(); to drop a batch call session.discard()"
            )

    def begin(self, batch: PhysicalBatch) -> None:
        """Take note of the item that the loop is about to get."""
        self._clear_after_update()
        if batch.first and self._open_step is not None:
            raise ProtocolError(
                "a new logical batch begins before the last one ended: the loop was left in its middle. Call "
                "session.discard() before iterating again"
            )
        if not batch.first and self._open_step != batch.step:
            raise ProtocolError("the rest of a logical batch came after it was discarded. Iterate the loader anew")
        passes = self.mechanism.passes
        if passes is not None and self._first_pass + batch.pass_index >= passes:
            raise BudgetExhaustedError(f"all {passes} planned passes over the data are spent")
        self._pool.clear()
        self._item, self._open_step = batch, batch.step
        self._pool.batch_size = batch.size

    # The optimizer's hooks -----------------------------------------------------------------------------------------

    def _before_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._require_open()
        closure = args[1] if len(args) > 1 else kwargs.get("closure")
        if closure is None:
            self._end_physical_batch()
            return None
        evaluated = self._evaluated_once(closure)
        if len(args) > 1:
            return (args[0], evaluated, *args[2:]), kwargs
        return args, {**kwargs, "closure": evaluated}

    def _evaluated_once(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Wrap a closure so that noise comes after its backward, and a second evaluation is refused."""
        calls = 0

        def evaluate() -> Any:
            nonlocal calls
            calls += 1
            if calls > 1:
                raise UnsupportedOptimizerError("the optimizer evaluated its closure more than once in one step")
            result = closure()
            self._end_physical_batch()
            return result

        return evaluate

    def _after_step(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        self._clear_after_update()

    def _clear_after_update(self) -> None:
        """Take the used gradients away; also when the optimizer raised and its post-hook never ran."""
        if self._update_pending:
            for parameter in self._parameters.values():
                parameter.grad = None
            self._update_pending = False

    def _end_physical_batch(self) -> None:
        """Close the physical batch, and at the end of its logical batch release the noised update."""
        self.last_step_updated = False
        self._clear_after_update()
        if self._loader is None:
            if self._physical_batches == 0:
                raise ProtocolError(
                    "optimizer.step() without a backward. Call session.backward(losses) first; an empty draw is "
                    "losses of shape [0]"
                )
            self._require_no_stray_gradients()
            self._release(pass_index=self._first_pass)
            return
        item = self._require_item()
        self._require_no_stray_gradients()
        if self._pool.backwards == 0:
            raise ProtocolError("optimizer.step() without a finished backward for this item of the loader")
        self._require_frozen_groups(item)
        scale = float(item.size) if self.mechanism.loss_reduction == "mean" else 1.0
        self._close_physical_batch(scale, item.weight)
        self._item, self._pool.batch_size = None, None
        if item.last:
            self._open_step = None
            self._release(self._first_pass + item.pass_index)

    # The step ------------------------------------------------------------------------------------------------------

    def _close_physical_batch(self, scale: float, weight: float) -> None:
        self._scope.leave_if_stale()
        uses = self._pool.take()
        if weight == 0.0:  # an empty draw: its stand-in record contributes exactly nothing
            return
        factors = self.mechanism.clipping.factors
        for name, part in clipped_sums(uses, factors=factors, scale=scale, plan=self._plan).items():
            if name in self._sums:
                self._sums[name] += part
            else:
                self._sums[name] = part

    @torch.no_grad()
    def _release(self, pass_index: int) -> None:
        """Charge, then draw noise, then hand the noised update to the optimizer."""
        mechanism, ledger = self.mechanism, self._ledger
        assert ledger is not None
        if mechanism.steps is not None and ledger.steps >= mechanism.steps:
            self.discard()
            raise BudgetExhaustedError(f"all {mechanism.steps} planned steps are spent; the model was not updated")
        sums, self._sums, self._physical_batches, self._groups = self._sums, {}, 0, None
        ledger.charge(mechanism.event(pass_index))
        number, self._released = self._released, self._released + 1
        self._update_pending = True
        try:
            for index, (name, parameter) in enumerate(self._parameters.items()):
                total = sums.get(name)
                if total is None:
                    total = torch.zeros_like(parameter, dtype=accumulation_dtype(parameter.dtype))
                update = noisy_update(
                    total,
                    noise_std=mechanism.noise_std,
                    divisor=mechanism.divisor,
                    stream=self._noise,
                    address=Address(step=number, item=index),
                )
                parameter.grad = update.to(parameter.dtype)
        except BaseException:
            self._clear_after_update()  # no partial update; the charge stands
            raise
        self.last_step_updated = True

    # Checks --------------------------------------------------------------------------------------------------------

    def _require_open(self) -> None:
        if self._closed:
            raise ClosedSessionError("this session was closed. Call privatize or make_private again")

    def _require_item(self) -> PhysicalBatch:
        if self._item is None:
            raise ProtocolError(
                "there is no batch to work on: every backward and optimizer.step() belongs to one item of the private "
                "loader, and this item was stepped already or none was read yet"
            )
        return self._item

    def _require_no_stray_gradients(self) -> None:
        stray = [name for name, parameter in self._parameters.items() if parameter.grad is not None]
        if stray:
            raise StrayGradientError(
                f"got an ordinary gradient, without clipping and noise: {', '.join(stray)}. Use each parameter inside "
                f"the model's own forward only, write nothing to .grad, and call optimizer.zero_grad() before going on"
            )

    def _require_frozen_groups(self, item: PhysicalBatch) -> None:
        """The number of physical batches is secret, so nothing may be counted by it."""
        if item.first:
            self._groups = None if item.last else self._group_values()
        elif self._groups != self._group_values():
            raise ContractChangedError(
                "a value of the optimizer's param_groups (the learning rate, say) changed inside a logical batch, "
                "whose number of physical batches is secret. Step schedulers only when last_step_updated is True"
            )

    def _group_values(self) -> list[dict[str, Any]]:
        return [
            {
                key: float(value) if isinstance(value, Tensor) else value
                for key, value in group.items()
                if key != "params"
            }
            for group in self._optimizer.param_groups
        ]

    # Set-up --------------------------------------------------------------------------------------------------------

    def _loader_stream(self) -> KeyStream:
        self._require_open()
        if self._loader is not None or self._ledger is not None:
            raise ProtocolError("a session has one loader, made before its first backward")
        return self._stream.fork("loader")

    def _attach_loader(self, loader: PrivateLoader, population: int) -> PrivateLoader:
        self._open_ledger(OBSERVED, population)
        self._loader = loader
        return loader

    def _open_ledger(self, sampling: str, population: int | None) -> None:
        if self._ledger is not None:
            return
        if sampling == DECLARED and isinstance(self.mechanism.sampling, DisjointBatches):
            raise ProtocolError(
                "DisjointBatches without a loader cannot be charged: nobody sees where a pass ends. Use session.batches"
            )
        self._ledger = Ledger(self._ledger_path, contract=self._contract(sampling, population))
        earlier = [event.pass_index for event, _ in self._ledger.events() if isinstance(event, DisjointPass)]
        self._first_pass = max(earlier, default=-1) + 1

    def _contract(self, sampling: str, population: int | None) -> Contract:
        return Contract(
            sampling=sampling,
            noise_source=OPERATING_SYSTEM if self._stream.is_secret else FIXED_KEY,
            expected_batch_size=self.mechanism.expected_batch_size,
            max_grad_norm=self.mechanism.clipping.max_grad_norm,
            loss_reduction=self.mechanism.loss_reduction,
            population=population,
        )
