"""What a session takes on trust: what was met and could not be examined, and what a later batch may still show."""

from __future__ import annotations

from collections.abc import Iterable

from hushgrad.accounting.conditions import LOSSES_CHANGE, NEVER_EXAMINED, VALUES_READ, Condition, not_examined
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.row_order import RowOrder
from hushgrad.guards.probing.scalar_loss import ScalarLoss


class OnTrust:
    """What one session took on trust, each thing once however often it is met.

    Args:
        scalar_loss: knows what is on trust of losses of the loop's own.
        programs: know what is of the loop's own calls.
        row_order: knows what is of rows that are known by their place.
    """

    def __init__(self, scalar_loss: ScalarLoss, programs: LossPrograms, row_order: RowOrder) -> None:
        self._scalar_loss = scalar_loss
        self._programs = programs
        self._row_order = row_order
        self._taken: dict[Condition, None] = {}
        self._notes: dict[str, None] = {}

    def take(self, condition: Condition) -> None:
        """Take this on trust."""
        self._taken[condition] = None

    def note(self, untold: Iterable[str]) -> None:
        """Keep what could not be told, in words."""
        self._notes.update(dict.fromkeys(untold))

    def settle(self) -> None:
        """The programs of an item were examined: what the loop has read for it is on trust."""
        if self._programs.has_read:
            self.take(VALUES_READ)

    @property
    def notes(self) -> tuple[str, ...]:
        """What could not be examined, and why."""
        return tuple(self._notes)

    @property
    def conditions(self) -> tuple[Condition, ...]:
        """What was taken on trust so far, in the order in which it came about."""
        return (
            *self._scalar_loss.conditions,
            *self._taken,
            *([LOSSES_CHANGE] if self._programs.have_changed else []),
            *map(not_examined, self._programs.untold_of_places),
            *(not_examined(f"the loop's own calls, since {why}") for why in self._programs.untold),
            *(not_examined(note) for note in self._notes),
        )

    def open_conditions(self, *, is_never_examined: bool) -> tuple[Condition, ...]:
        """What would be on trust if the session ended now.

        `is_never_examined`: whether it had batches, and none of them was of more than one example.
        """
        return (
            *([NEVER_EXAMINED] if is_never_examined else []),
            *self._row_order.on_trust,
            *([VALUES_READ] if self._programs.may_have_read else []),
            *map(not_examined, self._programs.untold_of_padding),
        )
