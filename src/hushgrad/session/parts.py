"""What a session is made of, in one value that its loops work with."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from hushgrad.capture.scope import Scope
from hushgrad.gradients.contribution import Plan
from hushgrad.guards.gradient_marks import GradientMarks
from hushgrad.guards.left_alone import LeftAlone
from hushgrad.guards.monitoring.monitor import Monitors
from hushgrad.guards.probing.probe import Probe
from hushgrad.guards.setup_invariants import SetupInvariants
from hushgrad.mechanism import Mechanism
from hushgrad.randomness import KeyStream
from hushgrad.session.loss_scale import LossScale
from hushgrad.session.members import Members
from hushgrad.session.regularizers import Regularizers
from hushgrad.session.spending import Spending
from hushgrad.session.update import Update


@dataclass(frozen=True, eq=False)
class Parts:
    """The parts of one session. Each does one thing and knows none of the others.

    Attributes:
        mechanism: what every step does and costs.
        parameters: what is trained, by name.
        members: the modules and the optimizer, which belong to this session.
        stream: the session's own secret bits.
        plan: how norms are computed.
        scope: captures the forwards of the model.
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
    """

    mechanism: Mechanism
    parameters: dict[str, nn.Parameter]
    members: Members
    stream: KeyStream
    plan: Plan
    scope: Scope
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

    def take_marks(self) -> None:
        """Begin a step or an item: nothing of the last update, and no mark, is left in `.grad`.

        Raises:
            ProtocolError: gradients were cleared since the last backward.
            UnsupportedOptimizerError: they were scaled.
        """
        self.update.clear()
        self.marks.require_untouched()
        self.marks.take_away()
