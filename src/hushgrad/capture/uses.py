"""The uses that a backward recorded, pooled until the physical batch is closed."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Lock

import torch
from torch import Tensor

from hushgrad.capture.axes.owners import BatchLocation, SegmentIds, Whole
from hushgrad.capture.expected import ExpectedUses
from hushgrad.capture.in_turn import InTurn
from hushgrad.errors import PrivacyUnitError
from hushgrad.gradients.contribution import Contribution, Plan, full_precision
from hushgrad.gradients.dense import Dense
from hushgrad.gradients.narrow import widened
from hushgrad.gradients.ownership import own
from hushgrad.gradients.rows import Rows
from hushgrad.gradients.touched_rows import sum_of_looked_up
from hushgrad.torch_internals import NO_GRAPH_TASK, call_after_backward, current_graph_task, keeps_some_values


@dataclass(slots=True)
class _Uses:
    """The uses of one parameter: in factored form, and the sum of those whose gradients were formed, if any was."""

    factored: list[Contribution] = field(default_factory=list)
    kept: Tensor | None = None

    def keep(self, gradients: Tensor) -> None:
        """Add gradients `[B, *shape]`, into memory that is nobody else's."""
        self.kept = gradients if self.kept is None else self.kept.add_(gradients)

    def join(self, more: _Uses) -> None:
        self.factored += more.factored
        if more.kept is not None:
            self.keep(more.kept)

    def contributions(self) -> list[Contribution]:
        """Return what is to be combined; rows that were looked up are put into kept gradients."""
        if self.kept is None:
            return self.factored
        for rows in (part for part in self.factored if isinstance(part, Rows)):
            rows.add_to(self.kept)
        return [Dense(self.kept), *(part for part in self.factored if not isinstance(part, Rows))]


class UsePool:
    """Contributions of one physical batch, by parameter name.

    `batch_size` is the number of examples of the physical batch: public to the pool's owner, declared before the
    backward runs. Uses of a backward that raises are dropped: they only count once their graph task has finished.
    `backwards` counts those of the physical batch; `undivided` those whose losses were not divided by its size.
    `is_narrow` is set once gradients passed through 16 bits, where they are rounded after what they were divided by.

    Per-example gradients that are to be formed, and take no more memory than what they are made of, are formed at
    once: what they are made of can then go while the backward still runs.
    """

    def __init__(
        self,
        plan: Plan | None = None,
        *,
        on_backward: Callable[[], None] | None = None,
        outlasts_backward: bool = True,
        sparse: Collection[str] = (),
    ) -> None:
        """Make an empty pool.

        Args:
            plan: how norms are computed.
            on_backward: called each time that a backward with uses has ended.
            outlasts_backward: whether other code runs between a backward and `take`. It could overwrite what was
                recorded, so that is made the pool's own.
            sparse: names of tables whose gradients `gradient_of` gives as sparse ones.
        """
        self._plan = plan or Plan()
        self._on_backward = on_backward
        self._outlasts_backward = outlasts_backward
        self._sparse = frozenset(sparse)
        self._joining = Lock()
        self.is_split = False
        """Whether no process has all of the model."""
        self.batch_size: int | None = None
        self.is_narrow = False
        self._finished: dict[str, _Uses] = {}
        self._running: dict[int, dict[str, _Uses]] = {}
        self.backwards = 0
        self.undivided = 0
        self._undivided_tasks: set[int] = set()
        self.asked: list[Tensor] = []
        """Gradients by inputs that were asked for with a graph, of the physical batch: losses may be made of them."""
        self.is_penalized = False
        """Whether a backward of the physical batch came back through one of them, from a gradient penalty say."""
        self.expected = ExpectedUses() if self._plan.limits_operands else None
        """What forwards announce; None where operands may take all memory."""
        self.in_turn: InTurn | None = None
        """What uses are handed on by inside a backward, instead of being kept until it has ended."""

    def announce(self, names: Iterable[str], nbytes: int) -> None:
        """A captured call of a forward, not one that is run again in a backward, will hold so much until its norm."""
        if self.expected is not None and current_graph_task() == NO_GRAPH_TASK:
            self.expected.add(names, nbytes)
            self.expected.runs_once |= keeps_some_values()

    def note_undivided(self) -> None:
        """Take note, from inside a backward, that its losses were not divided by the size of the batch."""
        task = current_graph_task()
        self._undivided_tasks = {task}  # an earlier one that is still here was left by an exception
        call_after_backward(lambda: self._undivided_tasks.discard(task))

    def add(self, name: str, contribution: Contribution) -> None:
        """Record one use, from inside the backward that produced it."""
        if self.in_turn is not None:
            self.in_turn.add(name, contribution)
            return
        task = current_graph_task()
        running = self._running.get(task)
        if running is None:
            running = self._running[task] = {}
            # A backward inside that one (a part that checkpointing runs again) has a task of its own.
            is_undivided = bool(self._undivided_tasks)
            call_after_backward(lambda: self._finish(task, is_undivided))
        uses = running.get(name)
        if uses is None:
            uses = running[name] = _Uses()
        gradients = contribution.formed(self._plan)
        if gradients is None:
            uses.factored.append(contribution)
        else:
            uses.keep(gradients)

    def call_ended(self, names: Iterable[str]) -> None:
        """A captured call has recorded all its uses, of these parameters."""
        if self.in_turn is not None:
            self.in_turn.call_ended(names)

    @property
    def holds(self) -> bool:
        """Whether uses were recorded that nobody has taken, by backwards that have ended or the one that runs."""
        return bool(self._finished) or current_graph_task() in self._running

    def count_backward(self, *, is_undivided: bool) -> None:
        """A backward has ended whose uses were handed on."""
        self.backwards += 1
        self.undivided += is_undivided
        if self._on_backward is not None:
            self._on_backward()

    def _finish(self, task: int, is_undivided: bool) -> None:
        recorded = self._running.pop(task, {})
        if self._outlasts_backward:
            own(uses.factored for uses in recorded.values())
        with self._joining:  # backwards may end in several threads
            for name, uses in recorded.items():
                before = self._finished.setdefault(name, uses)
                if before is not uses:
                    before.join(uses)
            self.backwards += 1
            self.undivided += is_undivided
        if self._on_backward is not None:
            self._on_backward()

    def take(self) -> dict[str, list[Contribution]]:
        """Return the uses of all finished backwards and empty the pool."""
        uses = {name: found.contributions() for name, found in self._finished.items()}
        self.clear()
        return uses

    def gradient_of(self, example: int) -> Iterator[tuple[str, Tensor]]:
        """Yield the gradient of one example by each parameter that was used, `[*shape]`, and keep all of it.

        Of a sparse table it is sparse, if the table was looked up and nothing else.

        One at a time: together they take as much memory as the model.
        """
        for name, uses in self._finished.items():
            parts = [*uses.factored, *([] if uses.kept is None else [Dense(uses.kept)])]
            alone = [part.alone(example) for part in parts]
            looked_up = [part for part in alone if isinstance(part, Rows)]
            if name in self._sparse and len(looked_up) == len(alone):
                yield name, sum_of_looked_up(looked_up)
            else:
                yield from gradients_by_name({name: alone})

    def clear(self) -> None:
        """Drop everything that was recorded."""
        self._finished, self._running, self.backwards, self.undivided = {}, {}, 0, 0
        self._undivided_tasks = set()
        self.asked, self.is_penalized = [], False
        self.expected, self.in_turn = ExpectedUses() if self._plan.limits_operands else None, None

    def examples(self, tensor: Tensor, axis: BatchLocation, where: str) -> Tensor:
        """Return `tensor` as `operands` does, in at least float32 if it is floating."""
        return widened(self.operands(tensor, axis, where))

    def operands(self, tensor: Tensor, axis: BatchLocation, where: str) -> Tensor:
        """Return `tensor` as `[B, ...]` with the batch first, in its own precision.

        Positions that are folded into the batch come out as one further dimension: `[B·k, ...]` gives `[B, k, ...]`,
        with zeros where an example has fewer than k rows.

        Raises:
            PrivacyUnitError: the tensor's rows cannot be assigned to the B examples.
        """
        batch = self.batch_size
        if batch is None:
            raise PrivacyUnitError(
                "a backward ran outside `session.backward` and outside of an item of the private loader, so the number "
                "of examples is unknown",
                where=where,
                cure="Run forward and backward of another network's step through this one (a generator's, say) inside "
                "`with session.paused():` (engine.session); this network's own between a loader item and its "
                "optimizer.step(), or by session.backward(losses)",
            )
        if axis is None:
            raise PrivacyUnitError(
                f"got a tensor of shape {list(tensor.shape)} in which the examples of the batch can no longer be told "
                f"apart",
                where=where,
                cure="Keep the batch on an axis of its own up to this operator",
            )
        if isinstance(axis, (SegmentIds, Whole)):
            return axis.blocks(tensor, batch)
        if axis != 0:
            tensor = tensor.movedim(axis, 0)
        if tensor.shape[0] != batch:
            if batch == 0 or tensor.shape[0] % batch:
                raise PrivacyUnitError(
                    f"saw {tensor.shape[0]} rows for {batch} examples",
                    where=where,
                    cure="Keep the batch on an axis of its own, and let one row of the model's inputs be one example",
                )
            tensor = tensor.reshape(batch, tensor.shape[0] // batch, *tensor.shape[1:])
        return tensor


def gradients_by_name(uses: Mapping[str, Sequence[Contribution]]) -> Iterator[tuple[str, Tensor]]:
    """Yield the gradient of the only example of some uses by each parameter, `[*shape]`, one at a time."""
    for name, parts in uses.items():
        with torch.no_grad(), full_precision():
            own = [part.per_example()[0] for part in parts]
            found = own[0] if len(own) == 1 else torch.stack([gradient.double() for gradient in own]).sum(0)
        yield name, found
