"""The examination of what a physical batch ran: its calls of the model, all or a few examples, and its criteria."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hushgrad.guards.probing.due_calls import DueCalls
from hushgrad.guards.probing.evaluations import Evaluation, Evaluations
from hushgrad.guards.probing.kept_calls import Pending
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.model_probe import examine, look
from hushgrad.guards.probing.on_trust import OnTrust
from hushgrad.guards.probing.probed import Probed


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


class BatchProbe:
    """Examines the batches of one session, and counts what that costs.

    Args:
        calls: learn which were examined.
        evaluations: examine criteria.
        looks: choose the examples of calls that are looked at.
        on_trust: takes what could not be examined.
        probed: makes what is known of the model for the batch in work.

    Attributes:
        is_told: whether the graph of the losses of the batch in work could be asked.
    """

    def __init__(
        self, calls: DueCalls, evaluations: Evaluations, looks: Looks, on_trust: OnTrust, probed: Callable[[], Probed]
    ) -> None:
        self._calls = calls
        self._evaluations = evaluations
        self._looks = looks
        self._on_trust = on_trust
        self._probed = probed
        self._forwards, self._call_count = 0.0, 0
        self._look_count, self._look_forwards = 0, 0.0
        self.is_told = True

    def examine(self, pending: Sequence[Pending], evaluations: Sequence[Evaluation], size: int) -> None:
        """Examine calls and criteria on all examples of a batch of `size`.

        Raises:
            CrossSampleLeakError, PrivateBufferError: naming the place and the cure.
        """
        probed = self._probed()
        probed.keeps_runs = len(pending) == 1 and bool(evaluations)
        for part in pending:
            self.is_told &= examine(probed, part.call, size)
            if not evaluations:
                part.call.output = None  # nobody asks it any more, and what holds the call may live longer
        if pending:
            self._forwards = max(self._forwards, probed.forwards / len(pending))
        self._call_count += len(pending)
        self._on_trust.note(probed.skipped)
        for evaluation in evaluations:
            runs, output = (probed.runs, pending[0].call.output) if len(pending) == 1 else (None, None)
            self._on_trust.note(self._evaluations.examine(evaluation, size, runs, output))
        for part in pending:
            self._calls.examined(part, is_shown=size > 1 and self.is_told)

    def look(self, pending: Sequence[Pending], size: int) -> None:
        """Examine a few examples of calls: of those for which the first batch had no room, and of later ones.

        Raises:
            CrossSampleLeakError, PrivateBufferError: naming the place and the cure.
        """
        probed = self._probed()
        for part in pending:
            look(probed, part.call, size, self._looks.some(size, size))
            self._calls.looked_at(part)
        self._look_count += len(pending)
        self._look_forwards += probed.forwards
        self._on_trust.note(probed.skipped)

    @property
    def report(self) -> ProbeReport:
        """What was done so far."""
        return ProbeReport(
            forwards=self._forwards,
            calls=self._call_count,
            criteria=self._evaluations.examined,
            examined=self._calls.is_examined,
            looks=self._look_count,
            look_forwards=self._look_forwards,
            notes=self._on_trust.notes,
        )
