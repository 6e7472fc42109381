"""Is a number of a loop's arithmetic a constant that a batch's size or length equals by chance? Other items tell."""

from __future__ import annotations

from collections.abc import Iterable, Set

from hushgrad.guards.probing.loss_numbers import ARITHMETIC, call_numbers
from hushgrad.guards.probing.loss_program import Made, Program

Line = tuple[str, int, str]
"""A call by its file, line and name."""


class LoopNumbers:
    """Remembers the numbers of one loop's calls, by their line, and the shapes of the items that they were used on."""

    def __init__(self) -> None:
        self._seen: dict[Line, dict[float, set[tuple[int, frozenset[int]]]]] = {}  # the items' sizes and shapes

    def note(self, program: Program) -> None:
        """Take note of an item's program."""
        shapes = frozenset(n for source in program.sources.values() for n in source.values.shape)
        for call in program.calls:
            if call.name in ARITHMETIC and (numbers := call_numbers(program, call)):
                seen = self._seen.setdefault(line_of(call), {})
                for number in numbers:
                    seen.setdefault(number, set()).add((program.size, shapes))

    def are_constant(self, call: Made, numbers: Iterable[float], lengths: Set[int]) -> bool:
        """Return whether the call's line had these numbers in an item that has none of the lengths, or in its code."""
        written = {float(part) for part in call.place.numbers}
        seen = self._seen.get(line_of(call), {})
        return all(
            number in written or any(not lengths & {size, *shapes} for size, shapes in seen.get(number, ()))
            for number in numbers
        )

    def follow_size(self, call: Made, size: int) -> bool:
        """Return whether the call's line had the size of an item as a number in that item, which was another one."""
        seen = self._seen.get(line_of(call), {})
        return any(number != size and any(number == other for other, _ in items) for number, items in seen.items())


def line_of(call: Made) -> Line:
    """Return where a call is made, and what it is called."""
    return call.place.file, call.place.line, call.name
