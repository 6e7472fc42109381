"""Does a loss follow the place of its record in the batch? Asked by running a loop's program on rows moved by one.

When a record is removed all that come after it move up a place. So the rows of the item and of the model's outputs are
moved, and the losses, the gradients at the outputs and what the model is given must move with them. Random numbers that
the program draws are the same for each row meanwhile; those that the loop drew beside it move too.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import combinations

import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.constants import Origin
from hushgrad.guards.probing.loss_program import Program
from hushgrad.guards.probing.loss_replay import (
    NotRunningError,
    Replay,
    axis_of,
    first_call,
    gradient_pairs,
    is_same,
    numbers_agree,
    rounding,
    row_axis,
)
from hushgrad.guards.probing.program_rows import quiet_replay
from hushgrad.guards.probing.rows import blocks

MOST_TRIED = 3
"""Of so many tensors that may have a row for each example, all ways to move them are tried."""

CURE = (
    "Give each row the same, wherever in the batch it is: no weight, sign or target by arange(len(x)), enumerate or a "
    "slice of rows. What belongs to a record comes with it from the dataset; random numbers come from torch"
)

FREE = frozenset({Origin.UNKNOWN, Origin.PYTHON})
"""Tensors of these may be random, or may follow the place."""


def untold_of_places(program: Program) -> tuple[str, ...]:
    """Refuse losses, gradients and inputs of the model's that follow the place of their record in the batch.

    Args:
        program: of an item, which was run again, is repeatable, and in which no example's row changes others.

    Returns what could not be told: of values that the loop made anew for each row, in Python or NumPy.

    Raises:
        CrossSampleLeakError: they follow it; `where` names the call and its line.
    """
    if not program.ends or program.flat.roles or program.entries:
        return ()
    given = [
        f"the model is given a tensor of a row for each record that has nothing of the item ({place})"
        for place in dict.fromkeys(program.placed)
    ]
    trial = _Trial(program)
    try:
        found = trial.run()
    except NotRunningError:
        return tuple(given)
    if isinstance(found, CrossSampleLeakError):
        try:
            again = _Trial(_in_double(program)).run()
        except NotRunningError:
            again = found
        if isinstance(again, CrossSampleLeakError):
            raise found
        found = again
    return tuple(dict.fromkeys([*given, *trial.given, *found]))


class _Trial:
    """One program, in one precision.

    Attributes:
        given: what of the model's inputs stays in place with all values.
    """

    def __init__(self, program: Program) -> None:
        self._program = program
        self.given: list[str] = []
        rowed = [slot for slot in program.origins if self._has_own_rows(slot)]
        self._random = [slot for slot in rowed if program.origins[slot] is Origin.RANDOM]
        self._unknown = [slot for slot in rowed if program.origins[slot] in FREE]
        self._within = 0.0

    def run(self) -> CrossSampleLeakError | list[str]:
        """Return the refusal, or what could not be told.

        Raises:
            NotRunningError: the program cannot be run on rows in another order, or in this precision.
        """
        found: CrossSampleLeakError | None = None
        for is_told, alike, moved in self._ways():
            base = quiet_replay(self._program, alike)
            rolled = None if base is None else quiet_replay(self._program, {**alike, **self._rolled(moved)})
            if base is None or rolled is None or not numbers_agree(base, rolled):
                return []  # Python read numbers of single rows, which is said
            self._within = rounding(self._program, base)
            if self._is_reordered(base, rolled):
                return [_REORDERED]
            what = self._what_stayed(base, rolled)
            if what is None:
                return [] if is_told else [f"whether {_UNKNOWN}"]
            found = found or self._leak(what, base, rolled)
        if self._program.draws_in_python and found is not None:
            return [f"whether {_UNKNOWN}"]
        return [] if found is None else found

    def _ways(self) -> Iterator[tuple[bool, dict[int, Tensor], Sequence[int]]]:
        """Yield whether it is told so, what is alike in both runs, and which tensors from outside move too.

        A tensor of as many columns as there are examples looks like one of rows: it may have to stay.
        """
        alike = self._alike({Origin.RANDOM})
        for moved in _choices(self._random):
            yield True, alike, moved
        others = self._alike({Origin.RANDOM, *FREE})
        if self._unknown or others.keys() != alike.keys():
            for moved in _choices(self._unknown):
                yield False, others, [*self._random, *moved]

    def _has_own_rows(self, slot: int) -> bool:
        values, size = self._program.sources[slot].values, self._program.size
        axis = axis_of(values, size)
        if axis is None or values.is_sparse:
            return False
        rows = blocks(values, axis, size)
        return not bool((rows == rows[:1]).all())

    def _alike(self, origins: set[Origin]) -> dict[int, Tensor]:
        """Return the same values for all tensors of one shape that were made for single rows, one after the other."""
        first: dict[tuple[torch.Size, torch.dtype], Tensor] = {}
        found: dict[int, Tensor] = {}
        rowed = {*self._random, *self._unknown}
        for slot, origin in self._program.origins.items():
            values = self._program.sources[slot].values
            if origin not in origins or slot in rowed:
                continue
            known = first.setdefault((values.shape, values.dtype), values)
            if known is not values and not torch.equal(known, values):
                found[slot] = known
        return found

    def _rolled(self, moved: Sequence[int]) -> dict[int, Tensor]:
        found: dict[int, Tensor] = {}
        for slot, source in self._program.sources.items():
            if source.kind in ("item", "output") or slot in moved:
                axis = row_axis(self._program, slot, source.values)
                if axis is not None:
                    found[slot] = source.values.roll(source.values.shape[axis] // self._program.size, axis)
        return found

    def _has_moved(self, slot: int, one: Tensor, other: Tensor) -> bool | None:
        """Whether the rows of a tensor moved with those of the item; None where it has none."""
        axis, size = row_axis(self._program, slot, one), self._program.size
        if axis is None:
            return None
        if one.shape != other.shape:
            return False
        return is_same(blocks(one, axis, size).roll(1, 0), blocks(other, axis, size), within=self._within)

    def _is_reordered(self, base: Replay, rolled: Replay) -> bool:
        """Whether the model was given the same rows in an order of the loop's: outputs belong to other rows then."""
        for slot in self._program.inputs:
            one, other = base.values.get(slot), rolled.values.get(slot)
            if (
                one is None
                or other is None
                or one.shape != other.shape
                or self._has_moved(slot, one, other) is not False
            ):
                continue
            if torch.equal(one, other):
                continue
            first, second = one.reshape(len(one), 1, -1), other.reshape(1, len(other), -1)
            if row_axis(self._program, slot, one) == 0 and bool((first == second).all(2).any(1).all()):
                return True
        return False

    def _what_stayed(self, base: Replay, rolled: Replay) -> str | None:
        program = self._program
        for slot in program.inputs:
            one, other = base.values.get(slot), rolled.values.get(slot)
            if one is None or other is None or self._has_moved(slot, one, other) is not False:
                continue
            if one.shape != other.shape or not torch.equal(one, other):
                return "what the model is given"
            place = next((call.place for call in program.calls if slot in call.outputs), None)
            self.given.append(f"the model is given a tensor that is the same for each batch, row by row ({place})")
        for slot, one, other in gradient_pairs(program, base, rolled):
            moved = self._has_moved(slot, one, other)
            if moved is None and one.numel() > 1:
                return None  # outputs of a part of the batch: their rows cannot be moved
            if moved is False:
                return "the gradient of an example"
        for end in program.ends:
            one, other = base.values[end.slot], rolled.values[end.slot]
            if end.is_rows and self._has_moved(end.slot, one, other) is False:
                return "the loss of an example"
        return None

    def _leak(self, what: str, base: Replay, rolled: Replay) -> CrossSampleLeakError:
        call = first_call(
            self._program, base, rolled, lambda one, other: not is_same(one.roll(1, 0), other, within=self._within)
        )
        return CrossSampleLeakError(
            f"the loop does otherwise with a record in another place of the batch: when all rows were moved by one, "
            f"{what} did not move with them. When a record is removed, those after it move up",
            where="" if call is None else str(call),
            cure=CURE,
        )


_REORDERED = "whether losses follow the place of a record in its batch, since the loop changes the order of rows"
_UNKNOWN = "values that the loop makes in Python or NumPy, for each row anew, follow its place in the batch"


def _choices(slots: Sequence[int]) -> Iterator[Sequence[int]]:
    """Yield which of some tensors move: all, and then fewer."""
    yield slots
    if len(slots) <= MOST_TRIED:
        for count in range(len(slots) - 1, -1, -1):
            yield from combinations(slots, count)
    else:
        yield ()


def _in_double(program: Program) -> Program:
    """Return the program in double precision, in which what is rounding in another kernel is no difference."""
    return replace(
        program,
        sources={
            slot: source._replace(values=source.values.double()) if source.values.dtype is torch.float32 else source
            for slot, source in program.sources.items()
        },
    )
