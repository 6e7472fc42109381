"""Does what the model is given for one example follow how far it is padded, by the loop's own calls before the model?

A loop may pool before it calls the model (`model(x.mean(1))`): then no input has positions, and the model's own run
at another width shows nothing. So the calls up to the model run again on a batch that is padded further, and on one
that is cut to a short record's own width: the row that the model is given for this record must stay, and where it
has positions still, the record's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from torch import Tensor

from hushgrad.guards.probing.loss_program import End, Made, Program
from hushgrad.guards.probing.loss_replay import NotRunningError, Number, Replay, is_same, rounding
from hushgrad.guards.probing.other_widths import OtherWidth, run_evenly, shortest_of, unchanged_owners
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.program_rows import rows_at
from hushgrad.guards.probing.widths import Drawn, OwnWidth


class GivenPadding:
    """Asks it of one item's program.

    Args:
        program: of the item, which was run again.
        drawn: the item.
        positions: which outputs of the model have positions, as far as it is known.
        is_reordered: whether the loop gives the model the rows of the item in another order.
    """

    def __init__(self, program: Program, drawn: Drawn, positions: Positions, *, is_reordered: bool) -> None:
        self._program = before_model(program)
        self._drawn = drawn
        self._positions = positions
        self._is_reordered = is_reordered
        self._base: Replay | None = None
        self._failed = self._ran = 0

    @property
    def is_untold(self) -> bool:
        """Whether nothing could be run at another width, and what the model was given has no positions any more."""
        if self._ran or not self._failed:
            return False
        base = self._base
        if base is None:
            return True
        lengths = {length for width in self._drawn.short_records for length in width.lengths}
        around = {*lengths, *(length - 1 for length in lengths)}
        made = [slot for slot in self._program.inputs if slot in base.values and slot not in self._program.sources]
        return any(not around & set(base.values[slot].shape) for slot in made)

    def following(self, padded: Sequence[OwnWidth], left: bool) -> Made | None:
        """Return the call whose result the model was given, and that follows padding; None if none is known to.

        Args:
            padded: the records that end in padding, or begin with it where `left`.
            left: whether they are padded on the left.
        """
        if self._program.ends and padded:
            try:
                self._base = self._base or self._run({})
                return self._compare(padded, [left])
            except NotRunningError:
                self._failed += 1
        return None

    def following_in_lists(self, widths: Sequence[OwnWidth]) -> Made | None:
        """Return the same for an item with lists of an entry for each record, which the loop pads on either side."""
        owners = unchanged_owners(self._program, self._drawn.lists) if self._program.ends else set()
        shorter = [width for width in widths if width.row in owners]
        try:
            self._base = (self._base or self._run({})) if shorter else None
            return self._compare(shorter, [False, True]) if shorter else None
        except NotRunningError:
            self._failed += 1
            return None

    def _compare(self, widths: Sequence[OwnWidth], sides: Sequence[bool]) -> Made | None:
        alone = [] if self._is_reordered else shortest_of(widths)
        for own, rows in [(None, widths), *((width, [width]) for width in alone)]:
            found = [self._differing(own, rows, left) for left in sides]
            if all(call is not None for call in found):
                return found[0]
        return None

    def _differing(self, own: OwnWidth | None, rows: Sequence[OwnWidth], left: bool) -> Made | None:
        program, base = self._program, self._base
        other = OtherWidth(program, self._drawn.short_records, left, self._positions, own, self._drawn.lists)
        try:
            changed = other.run(self._run)
        except NotRunningError:
            self._failed += 1
            return None
        self._ran += 1
        if base is None:
            return None
        slot = self._slot_of_others(base, changed, rows, left)
        return None if slot is None else next((call for call in program.calls if slot in call.outputs), None)

    def _slot_of_others(self, base: Replay, changed: Replay, rows: Sequence[OwnWidth], left: bool) -> int | None:
        within = rounding(self._program, base)
        for slot in self._program.inputs:
            one, other = base.values.get(slot), changed.values.get(slot)
            if one is None or other is None or slot in self._program.sources:
                continue
            if (owner := self._program.entries.get(slot)) is not None:
                own = [width for width in rows if width.row == owner]
                if own and not _is_same_row(one, other, own[0], left, within):
                    return slot
                continue
            first, second = rows_at(self._program, slot, one), rows_at(self._program, slot, other)
            if first is None or second is None or not self._are_whole(one, other):
                continue
            size = self._program.size
            every = [OwnWidth(row, {}, {}, False) for row in range(size)] if self._is_reordered else rows
            others = [w for w in every if not _is_same_row(first[w.row], second[w.row], w, left, within)]
            if len(others) > (size - len(rows) if self._is_reordered else 0):
                return slot
        return None

    def _are_whole(self, one: Tensor, other: Tensor) -> bool:
        """Whether rows are the examples', and no selection of positions, of which there are as many by chance."""
        size = self._program.size
        return one.shape == other.shape or all(size in part.shape[:2] for part in (one, other))

    def _run(self, sources: dict[int, Tensor], number: Number = lambda value, call: value) -> Replay:
        return run_evenly(self._program, sources, number)


def before_model(program: Program) -> Program:
    """Return the calls of a program that made what the model was given; a program without ends if there are none."""
    wanted = set(program.inputs)
    calls = [number for number, call in enumerate(program.calls) if wanted & set(call.outputs)]
    ends = [End(program.calls[calls[-1]].outputs[0], calls[-1] + 1, False)] if calls else []
    return replace(program, ends=ends)


def given_differs(program: Program, base: Replay, changed: Replay) -> bool:
    """Whether the model is given something else for some example, where shapes stayed."""
    pairs = [(base.values.get(slot), changed.values.get(slot)) for slot in program.inputs]
    within = rounding(program, base)
    return any(
        one is not None
        and other is not None
        and one.shape == other.shape
        and not is_same(one.reshape(1, -1), other.reshape(1, -1), within=within)
        for one, other in pairs
    )


def _is_same_row(one: Tensor, other: Tensor, width: OwnWidth, left: bool, within: float) -> bool:
    """Whether a row is the same as far as its record goes."""
    if one.ndim != other.ndim:
        return False
    for axis, (length, resized) in enumerate(zip(one.shape, other.shape, strict=True)):
        if length == resized:
            continue
        kept = min(length, resized, width.of(length))
        one = one.narrow(axis, length - kept if left else 0, kept)
        other = other.narrow(axis, resized - kept if left else 0, kept)
    if not one.numel():
        return True
    return is_same(one.reshape(1, -1), other.reshape(1, -1).to(one.dtype), within=within)
