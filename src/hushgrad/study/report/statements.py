"""What a statement in words claims, and what a ledger gives in its place."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from hushgrad.accounting.composition import Composition
from hushgrad.accounting.events.event import Event
from hushgrad.accounting.guarantee import Guarantee, delta_text, guarantee
from hushgrad.accounting.ledger.contract import Contract
from hushgrad.study.report.document import up

_CLAIM = re.compile(
    r"\((?P<epsilon>[^\s,()]+), (?P<delta>[^\s,()]+)(?: \+ (?P<rounding>[^\s,()]+))?\)-differential privacy.*?"
    r"after (?P<steps>\d+) step"
)
_FIGURES = re.compile(r"\([^,()]+, [^,()]+\)(?=-differential privacy)|(?<=at most )\S+(?= above the exact value)")
ROUNDING = 2e-3
"""Relative: statements round ε up to four digits."""


@dataclass(frozen=True, slots=True)
class Claim:
    """What a statement in words claims: (ε, δ) after so many steps, ε rounded up; `rounding` is added to δ."""

    epsilon: float
    delta: float
    steps: int
    rounding: float = 0.0

    @classmethod
    def of(cls, statement: Any) -> Claim | None:
        """Return the claim of a statement; None where it makes none."""
        found = _CLAIM.search(statement) if isinstance(statement, str) else None
        try:
            if found is None:
                return None
            more = float(found["rounding"] or 0)
            return cls(float(found["epsilon"]), float(found["delta"]), int(found["steps"]), more)
        except ValueError:
            return None

    def is_of(self, held: Guarantee) -> bool:
        """Is this what the statement of `held` claims, to the digits of a statement?"""
        return (
            (self.epsilon == held.epsilon or math.isclose(self.epsilon, held.epsilon, rel_tol=ROUNDING, abs_tol=1e-9))
            and math.isclose(self.delta, held.delta, rel_tol=1e-5)
            and held.delta_of_rounding * (1 - ROUNDING)
            <= self.rounding
            <= held.delta_of_rounding * 1.1 * (1 + ROUNDING)
            and self.steps == held.steps
        )


def beyond(stated: Any, statement: str) -> str | None:
    """Return what a statement adds to the words of another one; None where it does not begin with them.

    Figures are left out: their last digits may differ between machines.
    """
    words = [_FIGURES.sub("…", text) for text in (str(stated), statement)]
    return words[0].removeprefix(words[1]).strip() if words[0].startswith(words[1]) else None


def held_by(composition: Composition, delta: float, contract: Contract) -> Guarantee:
    """Return what a part of a ledger guarantees; the result is cached."""
    return _held_by(tuple(composition), delta, contract)


@lru_cache(maxsize=64)
def _held_by(events: tuple[tuple[Event, int], ...], delta: float, contract: Contract) -> Guarantee:
    return guarantee(list(events), delta, contract=contract)


def claimed(statement: Any) -> str:
    """Return the claim of a statement as short text."""
    claim = Claim.of(statement)
    if claim is None:
        return "no (ε, δ)"
    return f"({up(claim.epsilon)}, {delta_text(claim.delta)}) after {claim.steps} steps"
