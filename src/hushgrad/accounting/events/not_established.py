"""What is charged where it was found that steps before may have cost more than they were charged."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import ClassVar, Self

from hushgrad.accounting.events.costs import Costs
from hushgrad.accounting.events.event import ADD_REMOVE_ONE, Event
from hushgrad.errors import InvalidArgumentError
from hushgrad.printable import printable

_LONGEST = {"code": 20, "place": 200, "what": 600}


@dataclass(frozen=True, slots=True)
class NotEstablished(Event):
    """No step, but the end of an account: what its steps were charged is not established.

    It costs what a step without noise does, so that every ε of a composition that has it is infinite, whoever adds it
    up. A version of hushgrad that does not know the kind refuses the ledger.

    `code`, `place` and `what` are those of the error that said so, names and shapes only; cut where they are long.
    `noise_multiplier` is 0: nothing protects.
    """

    code: str
    place: str
    what: str
    noise_multiplier: float = 0.0

    type: ClassVar[str] = "not_established"
    version: ClassVar[int] = 1
    adjacency: ClassVar[str] = ADD_REMOVE_ONE

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name in _LONGEST:
                if not isinstance(value, str):
                    raise InvalidArgumentError(
                        f"must be text, got {type(value).__name__}", where=field.name, cure="Pass the error's own words"
                    )
                object.__setattr__(self, field.name, printable(value, _LONGEST[field.name]))
        if self.noise_multiplier != 0:
            raise InvalidArgumentError(
                f"must be 0, got {self.noise_multiplier}", where="noise_multiplier", cure="Leave it out"
            )

    def add_to(self, costs: Costs, count: int) -> None:
        """Add a release without noise: no ε is finite."""
        costs.add_release(0.0, count)

    @classmethod
    def sentence(cls, ran: Sequence[tuple[Self, int]], *, alone: bool) -> str:
        """Return that nothing was drawn for it."""
        return "nothing was drawn for a finding"

    @property
    def finding(self) -> str:
        """What was found, and where."""
        return f"{self.code} {self.place}: {self.what}" if self.place else f"{self.code} {self.what}"
