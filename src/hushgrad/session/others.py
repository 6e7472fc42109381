"""What a session tells the other processes that train with it, and what it hears from them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

from torch.optim import Optimizer

from hushgrad.accounting.conditions import from_note
from hushgrad.errors import DesyncError, HushgradError, LedgerError, PeerFailedError
from hushgrad.parallel.agreement import conditions_of_all, together
from hushgrad.parallel.messages import tell_failure
from hushgrad.parallel.replicas import options_of
from hushgrad.sampling.records import PhysicalBatch
from hushgrad.session.parts import Parts


class Others:
    """The other processes of one session's world; with one process all of it does nothing.

    Guarantee: an error that this process raises in a step, or as it hands out an item, ends the step in all of them.
    """

    def __init__(self, parts: Parts, optimizer: Optimizer) -> None:
        self._parts, self._optimizer = parts, optimizer
        self._are_gone = False
        self.finding: HushgradError | None = None
        """What an examination of this process found."""

    @contextmanager
    def in_all(self, what: str, latest: PhysicalBatch | None) -> Iterator[None]:
        """Run something that all processes run, and go on only where it went well in all of them.

        Args:
            what: its name in messages.
            latest: the item in work, if any.
        """
        if self._parts.world.is_alone:
            yield
            return
        facts = {
            "number of steps": self._parts.spending.steps,
            "item": None if latest is None else [latest.step, latest.first, latest.last],
            "trained parameters": [name for name, p in self._parts.parameters.items() if p.requires_grad],
            "options of the optimizer": options_of(self._optimizer),
        }
        with together(self._parts.world, what, facts, more_of=self.told_with):
            yield

    def failed(self, error: Exception) -> None:
        """Tell the others of an error of this process's, unless they know it; or take in what one of them found."""
        if self._parts.world.is_alone:
            return
        if isinstance(error, PeerFailedError):
            self._hear(error)
        else:
            tell_failure(self._parts.world, error, **self.told_with(error))

    @contextmanager
    def telling(self) -> Iterator[None]:
        """Run something, and tell the others of an error in it."""
        try:
            yield
        except Exception as error:
            self.failed(error)
            raise

    def told_with(self, error: Exception) -> dict[str, Any]:
        """Return what the others have to know beside an error of this process's."""
        notes = [condition.as_note() for condition in self._parts.spending.untold([])]
        return {"is_finding": error is self.finding, "conditions": notes}

    def after_discard(self) -> None:
        """A logical batch was dropped: all processes know where the ledger stands."""
        self._agree("discard", self._parts.spending.settle)

    def at_close(self) -> None:
        """Leave with the first process what this one has taken on trust since the last release."""
        parts = self._parts

        def leave() -> None:
            found, _ = conditions_of_all(parts.world, parts.spending.untold([]))
            parts.spending.trust(found)
            parts.spending.all_were_told()
            parts.spending.settle("close", is_last=True)

        self._agree("close", lambda _: leave())
        with suppress(LedgerError):
            parts.spending.write_down()

    def _agree(self, what: str, act: Callable[[str], None]) -> None:
        """Do something with all others, where they can be reached; they are told of this call, whatever theirs is."""
        if self._parts.world.is_alone or self._are_gone or not self._parts.spending.is_open:
            return
        try:
            act(what)
        except (DesyncError, LedgerError):
            pass  # the others raise it, too, and go no further
        except PeerFailedError as error:
            self._hear(error)

    def _hear(self, error: PeerFailedError) -> None:
        """Leave in this process's account what another one found before it failed."""
        self._are_gone = self._are_gone or error.is_last
        spending = self._parts.spending
        found = (from_note(note) for note in error.conditions)
        with suppress(LedgerError):
            spending.trust(condition for condition in found if condition is not None)
            spending.write_down()
        if error.is_finding:
            spending.not_established(error)
