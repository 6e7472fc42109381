"""Numbers that left torch while a loop computed its loss: which depend on several examples, and which came back."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Size

from hushgrad.guards.probing.loss_program import Given, Made, Place, Program, mapped, slots_of
from hushgrad.guards.probing.numbers_taken import is_free, is_made_of, is_one_of, made_of, numbers_in

HARMLESS = {"isnan", "isfinite", "isinf"}
"""What is asked of a loss before it is trusted, and holds for any examples of use."""

ASSERTED = {"allclose", "equal"}
"""What a loop asserts of a batch; that its values were read is said all the same."""


ARITHMETIC = {
    "add", "add_", "addcdiv", "addcmul", "clamp", "clip", "div", "div_", "divide", "float_power", "iadd", "idiv",
    "imul", "ipow", "isub", "itruediv", "lerp", "mul", "mul_", "multiply", "pow", "radd", "rdiv", "rmul", "rpow",
    "rsub", "rtruediv", "sub", "sub_", "subtract", "true_divide", "truediv",
}  # fmt: skip
"""Calls whose numbers are factors, divisors and the like; those of others are mostly axes and sizes."""


SHAPES = {
    "view", "reshape", "expand", "repeat", "unflatten", "flatten", "permute", "transpose", "movedim", "unsqueeze",
    "squeeze", "sum", "mean", "amax", "amin", "max", "min", "norm", "softmax", "log_softmax", "cat", "stack", "chunk",
    "split", "unbind", "size", "shape", "new_zeros", "new_ones", "new_empty", "new_full", "broadcast_to", "tile",
}  # fmt: skip
"""Calls whose numbers are lengths and axes."""

MOST_STILL = 8
"""With so many numbers that stayed those that did not are joined."""


class NumbersTaken:
    """The numbers of one program.

    Args:
        program: of the item.
        numbers: what each call gave that made a number, for the item itself.
    """

    def __init__(self, program: Program, numbers: Mapping[int, Any]) -> None:
        self._program, self._numbers = program, numbers
        self._moved: tuple[set[int], set[int]] = (set(), set())

    def note(self, half: int, numbers: Mapping[int, Any]) -> None:
        """Take note of what they are when one `half` of the examples is exchanged (0 or 1)."""
        self._moved[half].update(
            call for call, number in self._numbers.items() if not _is_equal(number, numbers.get(call))
        )

    def used(self) -> Made | None:
        """Return a call of the losses' that took a number of several examples; None if none is known to."""
        shared = sorted(self._moved[0] & self._moved[1])
        if not shared and not (self._moved[0] | self._moved[1]):
            return None
        used = self._used()
        calls = self._program.calls
        for number in shared:
            is_bool = isinstance(self._numbers[number], bool) and calls[number].name not in ASSERTED
            if is_bool and not self._only_asks_whether_finite(number):
                return calls[number]
        starts = [(number, self._numbers[number]) for number in shared]
        sizes = sorted(call for call in self._moved[0] ^ self._moved[1] if isinstance(self._numbers[call], Size))
        moved = sorted(self._moved[0] | self._moved[1])
        together = [value for call in moved for value in numbers_in(self._numbers[call])]
        if len(together) > 1 and not all(isinstance(self._numbers[call], Size) for call in moved):
            starts.append((moved[0], together))
        for first, taken in starts:
            for later in sorted(call for call in used if call > first):
                call = calls[later]
                if is_made_of(taken, call.args, call.kwargs, call.place.numbers):
                    return call
        for number in sizes:  # of what values decide the shape: one example may do so alone, and it is a usual size
            for later in sorted(call for call in used if call > number and calls[call].name in ARITHMETIC):
                call = calls[later]
                if is_made_of(self._numbers[number], call.args, call.kwargs, call.place.numbers):
                    return call
        for number in shared:
            if not isinstance(self._numbers[number], Size) and self._comes_back(number, used):
                return calls[number]
        return None

    def read_backward(self) -> Made | None:
        """Return a call that took a number of several examples which code in the backward can read; None if none."""
        shared = sorted(self._moved[0] & self._moved[1])
        for numbers, written in self._program.read_backward:
            for number in shared:
                if is_made_of(self._numbers[number], numbers, {}, written):
                    return self._program.calls[number]
        return None

    def of_earlier(self) -> Made | Place | None:
        """Return a call of the losses', or of the model, that took a number of an earlier item; None if none did."""
        if self._program.carried:
            return self._program.carried[0]
        earlier = self._program.earlier
        if any(earlier & (set(numbers) - set(written)) for numbers, written in self._program.read_backward):
            return next(call for call in reversed(self._program.calls) if call.outputs)
        for number in sorted(self._used()):
            call = self._program.calls[number]
            written = {float(part) for part in call.place.numbers if isinstance(part, (int, float))}
            if self._program.earlier & (set(numbers_in((call.args, call.kwargs))) - written):
                return call
        return None

    def following(self, others: Mapping[int, Any]) -> Iterator[tuple[int, list[float]]]:
        """Yield calls of the losses' that took numbers made of such as are `others` in another run, and those numbers.

        Such a number may have been multiplied or divided by one that stayed. What is one that stayed as well is left
        out: equal by chance.
        """
        moved: set[float] = set()
        still: set[float] = set()
        for number in sorted(self._numbers.keys() & others.keys()):
            pairs = zip(numbers_in(self._numbers[number]), numbers_in(others[number]), strict=False)
            for one, other in pairs:
                (still if one == other else moved).add(one)
        starts = {*moved, *(number - 1 for number in moved)}  # a shift leaves one position less
        for one in [number for number in still if number > 1][:MOST_STILL]:
            starts |= {between for number in moved for between in (number / one, number * one)}
        starts -= still
        for later in sorted(self._used()) if starts else ():
            call = self._program.calls[later]
            if call.name not in ARITHMETIC:
                continue
            given = call_numbers(self._program, call)
            found = [number for start in sorted(starts) for number in made_of(start, given, call.place.numbers)]
            if found:
                yield later, found

    def given(self) -> Given | None:
        """Return a call of the model that got a number made of several examples; None if none is known to."""
        shared = sorted(self._moved[0] & self._moved[1])
        moved = sorted(self._moved[0] | self._moved[1])
        for given in self._program.given:
            starts = [self._numbers[number] for number in shared if number < given.calls]
            starts.append([value for call in moved if call < given.calls for value in numbers_in(self._numbers[call])])
            if any(is_one_of(taken, given.numbers, given.place.numbers) for taken in starts):
                return given
        return None

    def have_left(self) -> bool:
        """Return whether numbers of the examples left torch before the losses, but to ask if they are finite."""
        return any(not self._only_asks_whether_finite(call) for call in self._moved[0] | self._moved[1])

    def are_free(self) -> bool:
        """Return whether the losses' calls, or the model, got a number that is neither usual nor in the code."""
        calls = self._program.calls
        given = [(number.numbers, number.place) for number in self._program.given]
        given += [
            (tuple(numbers_in((calls[number].args, calls[number].kwargs))), calls[number].place)
            for number in self._used()
            if calls[number].name in ARITHMETIC
        ]
        for number in self._used():
            call = calls[number]
            given.append((tuple(choosing_numbers(call.name, call.args, call.kwargs)), call.place))
        return any(is_free(numbers, self._program.size, place.numbers) for numbers, place in given)

    def doubt(self) -> str:
        """Return which number of the examples' may have come back unseen, "" if none left torch."""
        for number in sorted(self._moved[0] | self._moved[1]):
            if not isinstance(self._numbers[number], Size):
                return f"numbers of the batch's examples leave torch: {self._program.calls[number]}"
        return ""

    def of_single_rows(self) -> Made | None:
        """Return a call by which Python got a number of one example's output; None where it did not of two or more."""
        outputs = self._depending_on_outputs()
        alone = [
            number
            for number in sorted(self._moved[0] ^ self._moved[1])
            if not isinstance(self._numbers[number], Size) and number in outputs
        ]
        return self._program.calls[alone[0]] if len(alone) > 1 else None

    def holds_size(self) -> bool:
        """Whether the loop asked a tensor for the number of examples; this library's own criteria all do."""
        size = self._program.size
        return any(
            number == size or (isinstance(number, Size) and size in number)
            for call, number in self._numbers.items()
            if call < self._program.last and not self._program.calls[call].place.is_criterions
        )

    def _depending_on_outputs(self) -> set[int]:
        reached, found = set(self._program.outputs), set()
        for number, call in enumerate(self._program.calls):
            given = {slot.number for slot in slots_of((call.args, call.kwargs))}
            if reached & given:
                found.add(number)
                reached |= set(call.outputs)
        return found

    def _used(self) -> set[int]:
        """Return the calls that the losses, or what the model was given, were made by."""
        wanted, found = {*(end.slot for end in self._program.ends), *self._program.inputs}, set()
        for number in range(self._program.last - 1, -1, -1):
            call = self._program.calls[number]
            is_change = not call.outputs and call.taken is None
            changed = [slot.number for slot in slots_of(call.args)[:1]] if is_change else []
            if wanted & {*call.outputs, *changed}:
                found.add(number)
                wanted |= {slot.number for slot in slots_of((call.args, call.kwargs))}
        return found

    def _comes_back(self, number: int, used: Iterable[int]) -> bool:
        """Whether a later call was given a tensor that was made of Python's numbers after this one left."""
        sources = self._program.sources
        before = max((slot for made in self._program.calls[:number] for slot in made.outputs), default=0)
        return any(
            slot.number > before and slot.number in sources and sources[slot.number].kind == "number"
            for later in used
            if later > number
            for slot in slots_of((self._program.calls[later].args, self._program.calls[later].kwargs))
        )

    def _only_asks_whether_finite(self, number: int) -> bool:
        calls = self._program.calls
        wanted = {slot.number for slot in slots_of(calls[number].args)}
        for call in reversed(calls[:number]):
            if wanted & set(call.outputs):
                if call.name in HARMLESS:
                    return True
                if call.name not in ("any", "all", "sum", "logical_not", "invert"):
                    return False
                wanted |= {slot.number for slot in slots_of(call.args)}
        return False


def call_numbers(program: Program, call: Made) -> list[float]:
    """Return the numbers that a call was given, those in tensors of one value that the loop made of numbers too."""
    sources = [
        program.sources[slot.number] for slot in slots_of((call.args, call.kwargs)) if slot.number in program.sources
    ]
    single = [
        float(source.values)
        for source in sources
        if source.kind in ("number", "constant") and source.values.numel() == 1 and not source.values.is_complex()
    ]
    return [*numbers_in((call.args, call.kwargs)), *single]


def choosing_numbers(name: str, args: Any, kwargs: Any) -> list[float]:
    """Return the numbers by which a call cuts, compares, moves or draws, those of slices too; no lengths, no axes."""

    def plainly(value: Any) -> Any:
        if isinstance(value, slice):
            return (value.start, value.stop, value.step)
        return value if isinstance(value, (int, float)) else None  # no tensor or array is read

    return [] if name in SHAPES else list(numbers_in(mapped((args, kwargs), plainly)))


def _is_equal(one: Any, other: Any) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return one == other or (math.isnan(one) and math.isnan(other))
    return bool(one == other)
