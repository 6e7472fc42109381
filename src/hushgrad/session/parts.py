"""What a session is made of, in one value that its loops work with."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from torch import nn

from hushgrad.accounting.conditions import NUMBERS_IN_FORWARD, Condition
from hushgrad.capture.public import PublicTensors
from hushgrad.capture.scope import Scope
from hushgrad.gradients.contribution import Plan
from hushgrad.guards.gradient_marks import GradientMarks
from hushgrad.guards.left_alone import LeftAlone
from hushgrad.guards.monitoring.monitor import Monitors
from hushgrad.guards.probing.probe import Probe
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.mechanism import Mechanism
from hushgrad.parallel.grid import Grid
from hushgrad.parallel.messages import exchanged
from hushgrad.parallel.world import World
from hushgrad.randomness import KeyStream
from hushgrad.sampling.records import Share
from hushgrad.session.loss_scale import LossScale
from hushgrad.session.members import Members
from hushgrad.session.regularizers import Regularizers
from hushgrad.session.spending import Spending
from hushgrad.session.update import Update
from hushgrad.torch_sharding import settle, whole_parameters


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of one session. Each does one thing and knows none of the others.

    Attributes:
        mechanism: what every step does and costs.
        parameters: what is trained, by name.
        members: the modules and the optimizer, which belong to this session.
        grid: the processes that train this model together, and which of them have other examples.
        draws: secret bits for drawing records, the same in all of these processes.
        plan: how norms are computed.
        sharded: the modules that `fully_shard` was called on; none of a model that every process has whole.
        scope: captures the forwards of the model.
        public: tensors that were declared, and are no part of any batch.
        probe: looks for examples that influence each other.
        frozen: what must stay as it was at set-up.
        left_alone: what the loop does to parameters and optimizer beside the steps.
        marks: what shows in `.grad` between a backward and the step.
        update: the clipped sums, and the noised update.
        regularizers: declared terms of parameters alone, added to the noised update.
        spending: the ledger, and what may still be spent.
        monitors: those that were handed in.
        loss_scale: what losses are multiplied by where gradients pass through 16 bits.
        is_strict: whether what the probe would take on trust is refused.
        chosen_owners: where batches are chosen (`verify`) and whole users clipped, the user of each row of the next.
    """

    mechanism: Mechanism
    parameters: dict[str, nn.Parameter]
    members: Members
    grid: Grid
    draws: KeyStream
    plan: Plan
    sharded: tuple[nn.Module, ...]
    scope: Scope
    public: PublicTensors
    probe: Probe
    frozen: SetupInvariants
    left_alone: LeftAlone
    marks: GradientMarks
    update: Update
    regularizers: Regularizers
    spending: Spending
    monitors: Monitors
    loss_scale: LossScale
    is_strict: bool
    chosen_owners: list[int] = field(default_factory=list)

    @property
    def world(self) -> World:
        """All processes that train this model together."""
        return self.grid.world

    @property
    def is_split(self) -> bool:
        """Whether no process has all of the model."""
        return bool(self.sharded) or bool(self.grid.row)

    @property
    def share(self) -> Share:
        """Which part of each logical batch this process takes: that of the others of its row, too."""
        return Share(self.grid.data.rank, self.grid.data.size)

    @property
    def current(self) -> Mechanism:
        """The mechanism of the step in work, with its own noise multiplier and clip norm."""
        return self.update.norm.of(self.spending.current())

    @property
    def decided_in_forward(self) -> tuple[Condition, ...]:
        """What is on trust of forwards that select rows and take numbers of the batch out of torch."""
        return (NUMBERS_IN_FORWARD,) if self.scope.decides_by_numbers else ()

    @contextmanager
    def examined(self, is_due: bool) -> Iterator[None]:
        """Inside, a model may be run again, if it is to be in this process: in no other one it has to run then, too.

        All processes come here with each item. Where the model is sharded all of them put it together; where it is
        tensor parallel all of a row run it, and none begins that while another one has something to say.
        """
        if not self.is_split:
            yield
            return
        self.probe.raise_kept_back()
        if not self.world.is_alone:
            is_due = any(number for number, _ in exchanged(self.world, "examination", number=int(is_due)))
        if is_due:
            with whole_parameters(self.sharded):
                yield
        else:
            yield

    def batch_comes(self) -> None:
        """A batch is handed out: what is declared from here on may hold its values."""
        self.regularizers.batch_comes()
        self.public.batch_comes()
        self.left_alone.batch_comes()

    def take_marks(self) -> None:
        """Begin a step or an item: nothing of the last update, and no mark, is left in `.grad`.

        Where a forward has left whole parameters of a sharded model in place, its shards are put back.

        Raises:
            ProtocolError: gradients were cleared since the last backward.
            UnsupportedOptimizerError: they were scaled.
        """
        settle(self.sharded)
        self.update.clear()
        self.marks.require_untouched()
        self.marks.take_away()
