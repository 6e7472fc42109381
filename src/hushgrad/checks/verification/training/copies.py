"""Runs hushgrad's own training on copies of a model, and records what came out: updates, draws and the ledger.

The copies are trained by the very sessions, loaders and ledgers that a user's run has. A fixed key makes two runs draw
the same noise and the same records; nothing else distinguishes a run under a fixed key from one under a secret key.
"""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils.data import DataLoader, Dataset
from torch.utils.data.dataloader import default_collate

from hushgrad.accounting.ledger.view import LedgerView, read_ledger
from hushgrad.checks.verification.training.noise_units import in_units_of_noise
from hushgrad.checks.verification.update.groups import WholeUsers
from hushgrad.checks.verification.update.paired_update import Output, seeded
from hushgrad.errors import InvalidArgumentError, UnsupportedModelError
from hushgrad.gradients.oracle import one_at_a_time
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.probing.kept import kept_by
from hushgrad.guards.probing.state import own_objects
from hushgrad.losses import PerExampleLoss
from hushgrad.mechanism import Mechanism
from hushgrad.randomness import KeyStream
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.sampling.torch_loader import DataLoaderReading, LoadingOptions, in_users, read_data_loader
from hushgrad.session.session import Session
from hushgrad.session.set_up import set_up
from hushgrad.torch_sharding import is_split

OptimizerFactory = Callable[[Iterable[nn.Parameter]], Optimizer]
TrainingLoop = Callable[[nn.Module, Optimizer, Any, nn.Module], None]
"""One pass of training: `(model, optimizer, loader, criterion)`."""

SessionLoop = Callable[[Session, nn.Module, Optimizer, PrivateLoader, Any], None]
"""One pass of a loop that works with the session itself: `(session, model, optimizer, loader, criterion)`."""


def ordinary_loop(model: nn.Module, optimizer: Optimizer, loader: Any, criterion: nn.Module) -> None:
    """One pass: loader item, backward, `optimizer.step()`."""
    device = next(model.parameters()).device
    for inputs, target in loader:
        optimizer.zero_grad()
        criterion(model(_to(inputs, device)), _to(target, device)).backward()
        optimizer.step()


def _to(value: Any, device: torch.device) -> Any:
    return value.to(device) if isinstance(value, Tensor) else value


def without_session(loop: TrainingLoop) -> SessionLoop:
    """Return a training loop as one that is given the session, and does not use it."""
    return lambda session, *rest: loop(*rest)


class _Enough(BaseException):
    """Ends a training loop after the steps that are needed."""


@dataclass(frozen=True, slots=True)
class RunTrace:
    """What one training run did that an observer of its control flow sees, and what it released first.

    `flow` has, for every call of `optimizer.step()`, whether it updated, and the learning rates; `charged_before` says
    whether every update was in the ledger when it was written; `first` is the first update, and
    `drawn` the records that took part in it.
    """

    flow: tuple[tuple[Any, ...], ...]
    updates: int
    charged_before: bool
    ledger: LedgerView
    first: Output
    drawn: tuple[int, ...]


@dataclass(frozen=True)
class TrainingReplica:
    """A model, its loss, its data and its mechanism, to be run as often as needed."""

    model: nn.Module
    criterion: Any
    mechanism: Mechanism
    reading: DataLoaderReading
    optimizer: OptimizerFactory
    max_physical_batch_size: int | None
    constant_shapes: bool

    @classmethod
    def of(
        cls,
        model: nn.Module,
        data_loader: Any,
        criterion: Any,
        mechanism: Mechanism,
        optimizer: OptimizerFactory,
        max_physical_batch_size: int | None,
        constant_shapes: bool = False,
    ) -> TrainingReplica:
        """Take an ordinary or a private loader; `mechanism` is what is claimed."""
        if isinstance(criterion, PerExampleLoss):
            raise InvalidArgumentError(
                "criterion must be the loss that was given to per_example, got what per_example returned",
                cure="Pass the ordinary loss, such as nn.CrossEntropyLoss()",
            )
        rows = max_physical_batch_size
        if isinstance(data_loader, PrivateLoader):
            rows = rows or data_loader.max_physical_batch_size
            constant_shapes = constant_shapes or data_loader.constant_shapes
            own = DataLoader(
                data_loader.dataset,
                batch_size=max(1, round(data_loader.batch_size)),
                collate_fn=data_loader.options.collate_fn,
                shuffle=mechanism.sampling.counts_in != "blocks",  # whose batches come in one order
            )
            reading = replace(read_data_loader(own), batch_size=data_loader.batch_size)
        else:
            reading = read_data_loader(data_loader)
        reading = in_users(reading, mechanism.sampling)
        one_step = replace(mechanism.at(0), steps=None, passes=None)
        return cls(_copied(model), criterion, one_step, reading, optimizer, rows, constant_shapes)

    def session(self, *, seed: int | None, ledger: Path | None = None) -> ReplicaSession:
        """Return a session on a fresh copy, under a fixed key (`seed`) or a secret one."""
        model = _training(_copied(self.model))
        optimizer = self.optimizer(model.parameters())
        key = None if seed is None else KeyStream.fixed_for_tests(seed)
        stepped: list[PhysicalBatch | None] = []
        # Before the session's own hook, which ends the item.
        optimizer.register_step_pre_hook(lambda *_: stepped.append(session.current_batch))
        # What tampered training releases is to be measured here, so the alarms of its monitors do not end it.
        parts = set_up(
            model,
            optimizer,
            self.mechanism,
            ledger=ledger,
            key=key,
            alarms=Alarms.NOTED,
            batches_are_chosen=ledger is None,
        )
        session = Session(parts, model, optimizer)
        return ReplicaSession(model, optimizer, session, self.criterion, stepped, parts.chosen_owners)

    @property
    def examples(self) -> int:
        """How many there are of what is clipped as one: records, or users that have some."""
        ownership = self.mechanism.sampling.ownership
        return self.reading.count if ownership is None else ownership.ids.users

    def records_of(self, example: int) -> list[int]:
        """Return the records of one example: itself, or all those of a user."""
        ownership = self.mechanism.sampling.ownership
        return [example] if ownership is None else ownership.ids.records_of(np.array([example])).tolist()

    def example_of(self, record: int) -> int:
        """Return which example a record is, or belongs to."""
        ownership = self.mechanism.sampling.ownership
        return record if ownership is None else int(ownership.ids.codes[record])

    @property
    def names(self) -> list[str]:
        """The names of the trainable parameters."""
        return [name for name, parameter in self.model.named_parameters() if parameter.requires_grad]

    def gradients_of(self, example: int) -> Output:
        """Return one example's gradient by ordinary autograd on a copy, `[1, *shape]` for each parameter.

        That of a user is the mean or the sum over their records, each run by itself.
        """
        model = _training(_copied(self.model))
        criterion = PerExampleLoss(
            self.criterion, loss_reduction=self.mechanism.loss_reduction, batch_size=lambda: 1, observer=None
        )
        records = self.records_of(example)
        runs = [lambda r=r: _losses_of(self._collated([r]), model, criterion).sum() for r in records]
        found = one_at_a_time(model, runs)
        ownership = self.mechanism.sampling.ownership
        parts = len(records) if ownership is not None and ownership.averages else 1
        return {name: gradient.sum(0, keepdim=True).to("cpu") / parts for name, gradient in found.items()}

    def item(self, examples: Sequence[int]) -> Any:
        """Return these examples, collated as the loader does; users with all their records."""
        records = [self.records_of(example) for example in examples]
        item = self._collated([record for own in records for record in own])
        return item if self.mechanism.sampling.ownership is None else WholeUsers(item, tuple(map(len, records)))

    def _collated(self, records: Sequence[int]) -> Any:
        collate = self.reading.options.collate_fn or default_collate
        return collate([self.reading.dataset[record] for record in records])

    def train(
        self,
        loop: SessionLoop,
        *,
        seed: int | None,
        updates: int,
        dataset: Any = None,
    ) -> RunTrace:
        """Run a training loop on a copy for a number of updates, with a ledger on disk."""
        with tempfile.TemporaryDirectory() as folder, seeded(seed):
            path = Path(folder) / "ledger.jsonl"
            running = self.session(seed=seed, ledger=path)
            recorder = _Recorder(running, path, updates)
            try:
                reading = self.reading
                if dataset is not None:
                    options = LoadingOptions(collate_fn=reading.options.collate_fn)
                    reading = replace(reading, dataset=dataset, options=options)
                private = running.session.batches_of(
                    reading, max_physical_batch_size=self.max_physical_batch_size, constant_shapes=self.constant_shapes
                )
                assert isinstance(private, PrivateLoader)  # a stream cannot be read, so it has no copy
                criterion = running.per_example()
                try:
                    while recorder.updates < updates:
                        before = recorder.updates
                        loop(running.session, running.model, running.optimizer, private, criterion)
                        if recorder.updates == before:
                            break
                except _Enough:
                    pass
            finally:
                running.session.close()
            return RunTrace(
                tuple(recorder.flow),
                recorder.updates,
                recorder.charged_before,
                read_ledger(path),
                recorder.first,
                recorder.drawn,
            )


def _read(gradient: Tensor) -> Tensor:
    """Return a copy of an update; rows that a sparse one does not hold are zeros."""
    own = gradient.detach()
    return (own.to_dense() if own.is_sparse else own).to("cpu", copy=True)


def _losses_of(item: Any, model: nn.Module, criterion: PerExampleLoss) -> Tensor:
    """Return the losses of an item `(inputs, target)`, one per example."""
    device = next(model.parameters()).device
    inputs, target = item
    return criterion.losses(model(_to(inputs, device)), _to(target, device))


def _copied(module: nn.Module) -> nn.Module:
    """Return a copy that shares the session, the engine or the loader that the module may keep.

    A tensor with a graph, such as the weight that an old `weight_norm` computed last, is copied without it.

    Raises `UnsupportedModelError` for one that lies on several processes.
    """
    if is_split(module):
        raise UnsupportedModelError(
            "a model that lies on several processes cannot be copied, and training is verified on copies",
            cure="Verify the model before fully_shard or parallelize_module is called, in one process: what is trained "
            "is the same",
        )
    memo: dict[int, Any] = {id(value): value for value in own_objects(module)}
    for _, value in kept_by(module)[0]:
        if isinstance(value, Tensor) and not value.is_leaf:
            memo[id(value)] = value.detach().clone()
    return copy.deepcopy(module, memo)


def _training(model: nn.Module) -> nn.Module:
    """Return the model in training mode; parts of one that trains stay in the mode in which they are."""
    return model if model.training else model.train()


@dataclass(frozen=True)
class ReplicaSession:
    """One session on one copy; `stepped` holds the loader item of every step.

    `owners` is what says whose the rows of the next batch are, where whole users are clipped.
    """

    model: nn.Module
    optimizer: Optimizer
    session: Session
    criterion: Any
    stepped: list[PhysicalBatch | None]
    owners: list[int]

    def per_example(self) -> PerExampleLoss:
        """Return the checked loss, as `PrivacyEngine.per_example` does."""
        return self.session.per_example(self.criterion)

    def update(self, item: Any) -> Output:
        """Return what one step on an item releases, in units of its noise; None stands for an empty draw."""
        found: Output = {}

        def read(optimizer: Any, args: Any, kwargs: Any) -> None:
            for name, parameter in self.model.named_parameters():
                if parameter.requires_grad and parameter.grad is not None:
                    found[name] = _read(parameter.grad)

        self._step(item, read)
        return in_units_of_noise(found, self.session.mechanism, self.session.written)

    def chosen(self, item: Any) -> dict[str, Tensor]:
        """Return which rows of each sparse gradient one step on an item updates; None stands for an empty draw."""
        found: dict[str, Tensor] = {}

        def read(optimizer: Any, args: Any, kwargs: Any) -> None:
            for name, parameter in self.model.named_parameters():
                if parameter.grad is not None and parameter.grad.is_sparse:
                    found[name] = parameter.grad.indices().squeeze(0).cpu()

        self._step(item, read)
        return found

    def _step(self, item: Any, read: Callable[..., None]) -> None:
        """Take one step on an item, and `read` what it releases, before the optimizer uses it."""
        handle = self.optimizer.register_step_pre_hook(read)
        if isinstance(item, WholeUsers):
            self.owners[:], item = item.owners, item.item
        try:
            self.session.backward(self._losses(item))
            self.optimizer.step()
        finally:
            handle.remove()

    def _losses(self, item: Any) -> Tensor:
        if item is None:
            return torch.zeros(0, device=next(self.model.parameters()).device)
        return _losses_of(item, self.model, self.per_example())


class _Recorder:
    """Follows a run from hooks of its optimizer, which come after the session's own."""

    def __init__(self, running: ReplicaSession, path: Path, updates: int) -> None:
        self._running, self._path, self._wanted = running, path, updates
        self.flow: list[tuple[Any, ...]] = []
        self.updates = 0
        self.charged_before = True
        self.first: Output = {}
        self.drawn: tuple[int, ...] = ()
        running.optimizer.register_step_pre_hook(self._before)
        running.optimizer.register_step_post_hook(self._after)

    def _before(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        gradients = {n: p.grad for n, p in self._running.model.named_parameters() if p.grad is not None}
        rates = tuple(group["lr"] for group in optimizer.param_groups)
        batch = self._running.stepped[-1]
        self.flow.append((bool(gradients), rates, None if batch is None else batch.step))
        if self.updates == 0 and batch is not None:
            self.drawn += batch.indices
        if gradients:
            self.updates += 1
            self.charged_before &= read_ledger(self._path).steps >= self.updates
            if not self.first:
                self.first = {n: _read(g) for n, g in gradients.items()}

    def _after(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        if self.updates >= self._wanted:
            raise _Enough


class Indices(Dataset[int]):
    """As many records as the data set has, each its own index: draws are observed without reading data."""

    def __init__(self, count: int) -> None:
        self._count = count

    def __len__(self) -> int:
        return self._count

    def __getitem__(self, index: int) -> int:
        return index
