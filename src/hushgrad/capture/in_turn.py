"""The uses of one backward, handed on parameter by parameter as soon as the last use of each has come."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping

from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.contribution import Contribution


class InTurn:
    """Holds the uses of a parameter until all its calls have recorded theirs, hands them on, and forgets them.

    Guarantee: each parameter is handed on once, with all its uses; one that comes later is refused.

    Args:
        calls: how many calls will record uses of each parameter, at most (`ExpectedUses`).
        take: is handed them.
    """

    def __init__(self, calls: Mapping[str, int], take: Callable[[str, list[Contribution]], None]) -> None:
        self._left = Counter(calls)
        self._take = take
        self._held: dict[str, list[Contribution]] = {}

    def add(self, name: str, contribution: Contribution) -> None:
        """Record one use of a call.

        Raises:
            UncoveredParameterUseError: no more were announced.
        """
        if self._left[name] <= 0:
            raise UncoveredParameterUseError(
                "a use came that no forward had announced, after the clipped sum was formed or a norm was taken: from "
                "a block that checkpointing runs by a backward of its own, or from another backward of this item",
                where=name,
                cure="Call checkpoint(..., use_reentrant=False), and run one backward for each item, on the sum of its "
                "losses; or allow more memory for operands (Plan(operand_bytes=...), `hushgrad machine`)",
            )
        self._held.setdefault(name, []).append(contribution)

    def call_ended(self, names: Iterable[str]) -> None:
        """A call has recorded all its uses, of these parameters."""
        for name in names:
            self._left[name] -= 1
            if self._left[name] == 0:
                self._take(name, self._held.pop(name))

    def finish(self) -> None:
        """The backward has ended: hand on those of which fewer calls came than were announced."""
        for name in list(self._held):
            self._left[name] = 0
            self._take(name, self._held.pop(name))
        self._left.clear()
