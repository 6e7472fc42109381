"""Is a record's loss computed otherwise in another batch? Asked by running an item's program on an earlier item's rows.

How many records were drawn, and how long the longest is, are secret. Python's own whole numbers can't be followed: what
`len(x) % 2` or `x.shape[1] > 20` decides shows in no run of the same program. But it shows between two items. A few
rows of an earlier one, with what the model gave for them, are put in the place of rows of a later one: its program
must give them the losses and gradients that the earlier one gave. Where it does not, the loop follows the number of
the step, or the draw, and nobody can know which.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from hushgrad.guards.probing.loss_padding import is_padded
from hushgrad.guards.probing.loss_program import Program
from hushgrad.guards.probing.loss_replay import NotRunningError, Replay, is_same, numbers_agree, rounding, row_axis
from hushgrad.guards.probing.narrowing import cut_like
from hushgrad.guards.probing.program_rows import (
    from_outside,
    key_from_outside,
    key_of_output,
    quiet_replay,
    rowed_outputs,
    rows_at,
)
from hushgrad.guards.probing.rows import blocks
from hushgrad.guards.probing.widths import Drawn, OwnWidth

ROWS = 4
"""So many rows of an earlier item are kept."""

MOST_KEPT = 1 << 20
"""A program that brings more values than this from outside is not compared."""

SMALLEST = 1e-5
"""A value that is smaller than this, relative to the largest of all kept rows, is rounding."""


class LossesBetween:
    """Compares the programs of one session's items.

    Attributes:
        have_changed: whether an item's program gave rows of an earlier one something else.
    """

    def __init__(self) -> None:
        self._kept: _Kept | None = None
        self.have_changed = False

    def compare(self, program: Program, drawn: Drawn, scale: Callable[[int], float]) -> None:
        """Compare the program of an item with the one before, and keep it for the next.

        Args:
            program: of an item, which was run again and is repeatable.
            drawn: the item.
            scale: by which the gradients of a batch of so many examples are divided, where the losses are no rows.
        """
        if self.have_changed or program.flat.roles or program.entries or not program.ends:
            return
        earlier = self._kept
        base = cache(lambda: quiet_replay(program, {}))  # wanted twice, or not at all
        try:
            if earlier is not None and earlier.differs(program, scale, base):
                self.have_changed, self._kept = True, None
                return
            self._kept = _kept(program, drawn, base) or earlier
        except NotRunningError:
            return


@dataclass(eq=False)
class _Part:
    """Some rows of a tensor `[k, m, ...]`, the axis they were on, and the key under which its like is found."""

    key: Hashable
    rows: Tensor
    axis: int | None


@dataclass(eq=False)
class _Kept:
    """Rows of an item, and what its program gave for them.

    Attributes:
        size: of the item.
        widths: the own lengths of the rows; empty where none is padded.
        left: whether they are padded on the left.
        item, outputs, outside: the values that went in.
        gradients: at the outputs.
        losses, inputs: what came out; what the model was given.
        is_rows: whether the losses are one for each row.
        numbers_outside: by which noise was scaled, and seeds of generators.
        seed, sets_seed: of torch, and whether the loop set it.
    """

    size: int
    widths: Sequence[OwnWidth]
    left: bool
    item: dict[Hashable, _Part]
    outputs: list[_Part]
    outside: list[_Part]
    gradients: list[Tensor | None]
    losses: list[Tensor]
    inputs: list[Tensor | None]
    is_rows: bool
    numbers_outside: frozenset[tuple[str, float]]
    seed: int
    sets_seed: bool

    def differs(self, program: Program, scale: Callable[[int], float], unaltered: Callable[[], Replay | None]) -> bool:
        """Whether a later program gives these rows something else; False where that cannot be told.

        Raises:
            NotRunningError: it cannot be run on them.
        """
        count = min(self._count, program.size)
        outputs = rowed_outputs(program)
        if outputs is None or {end.is_rows for end in program.ends} != {self.is_rows}:
            return False
        if [key_of_output(program, slot) for slot in outputs] != [part.key for part in self.outputs]:
            return True
        has_other_seed = (self.sets_seed or program.sets_seed) and self.seed != program.seed
        if has_other_seed or self.numbers_outside != program.numbers_outside:
            return True
        altered = self._put_in(program, outputs, count)
        if altered is None:
            return False
        base, changed = unaltered(), quiet_replay(program, altered)
        if base is None or changed is None or not numbers_agree(base, changed):
            return False
        factor = 1.0 if self.is_rows else scale(self.size) / scale(program.size)
        return self._compare(program, changed, outputs, count, factor)

    @property
    def _count(self) -> int:
        return len(self.outputs[0].rows)

    # What goes in ----------------------------------------------------------------------------------------------------

    def _put_in(self, program: Program, outputs: Sequence[int], count: int) -> dict[int, Tensor] | None:
        """Return the sources with the rows kept in the place of the first; None where they do not fit."""
        found: dict[int, Tensor] = {}
        for slot, source in program.sources.items():
            if source.kind != "item" or row_axis(program, slot, source.values) is None:
                continue
            part = self.item.get(program.paths.get(slot))
            changed = None if part is None else self._placed(program, slot, part, count)
            if changed is None:
                return None
            found[slot] = changed
        for slot, part in zip(outputs, self.outputs, strict=True):
            changed = self._placed(program, slot, part, count)
            if changed is None:
                return None
            found[slot] = changed
        outside = list(self.outside)
        for slot in from_outside(program):
            key = key_from_outside(program, slot)
            part = next((other for other in outside if other.key == key), None)
            if part is None:
                continue
            outside.remove(part)
            changed = part.rows if part.axis is None else self._placed(program, slot, part, count)
            if changed is not None and (part.axis is not None or changed.shape == program.sources[slot].values.shape):
                found[slot] = changed
        return found

    def _placed(self, program: Program, slot: int, part: _Part, count: int) -> Tensor | None:
        values = program.sources[slot].values
        axis = row_axis(program, slot, values)
        if axis is None or axis != part.axis or values.dtype != part.rows.dtype:
            return None
        changed = values.clone(memory_format=torch.contiguous_format)
        rows = blocks(changed, axis, program.size)
        fitting = self._fitted(part.rows[:count], rows.shape[1:])
        if fitting is None:
            return None
        rows[:count] = fitting
        return changed

    def _fitted(self, rows: Tensor, shape: torch.Size) -> Tensor | None:
        """Return the rows padded further, or cut, to another width; None where more than padding would go."""
        if rows.ndim != len(shape) + 1:
            return None
        for axis, length in enumerate(shape, start=1):
            own = rows.shape[axis]
            if own == length:
                continue
            if not self.widths or not own or any(width.of(own) > length for width in self.widths):
                return None
            if own > length:
                rows = rows.narrow(axis, own - length if self.left else 0, length)
            else:
                end = [rows.narrow(axis, 0 if self.left else own - 1, 1)] * (length - own)
                rows = torch.cat([*end, rows] if self.left else [rows, *end], axis)
        return rows

    # What comes out --------------------------------------------------------------------------------------------------

    def _compare(self, program: Program, changed: Replay, outputs: Sequence[int], count: int, factor: float) -> bool:
        within = rounding(program, changed)
        for number, slot in enumerate(outputs):
            gradient, kept = changed.gradients[program.outputs.index(slot)], self.gradients[number]
            if gradient is None and kept is None:
                continue
            zero = torch.zeros_like(changed.values[slot])
            axis = row_axis(program, slot, zero)
            assert axis is not None
            rows = blocks(zero if gradient is None else gradient, axis, program.size)[:count]
            one = torch.zeros_like(self.outputs[number].rows) if kept is None else kept
            if not self._is_alike(one[:count], rows, factor, within):
                return True
        losses = [changed.values[end.slot][:count] for end in program.ends] if self.is_rows else []
        given = [*(rows_at(program, slot, changed.values.get(slot)) for slot in program.inputs), *program.alike]
        pairs = [*zip(self.losses, losses, strict=False), *zip(self.inputs, given, strict=False)]
        return any(
            one is not None and other is not None and not self._is_alike(one[:count], other[:count], 1.0, within)
            for one, other in pairs
        )

    def _is_alike(self, one: Tensor, other: Tensor, factor: float, within: float) -> bool:
        """Whether rows are the same as far as both go."""
        if one.ndim != other.ndim or one.dtype != other.dtype:
            return True  # nothing that can be compared
        one, other = cut_like(one, other, self.left), cut_like(other, one, self.left)
        if not one.is_floating_point():
            return torch.equal(one, other)
        largest = float(one.abs().nan_to_num(0.0, 0.0, 0.0).max()) * abs(factor) if one.numel() else 0.0
        wide, others = one.double() * factor, other.double()
        others = torch.where((wide - others).abs() <= SMALLEST * largest, wide, others)
        return is_same(wide, others, within=within)


def _kept(program: Program, drawn: Drawn, unaltered: Callable[[], Replay | None]) -> _Kept | None:
    """Return some rows of an item, with all that is compared; None where it cannot be.

    Raises:
        NotRunningError: the program cannot be run without random numbers.
    """
    outputs = rowed_outputs(program)
    kinds = {end.is_rows for end in program.ends}
    outside = from_outside(program)
    if not outputs or len(kinds) > 1 or sum(program.sources[slot].values.numel() for slot in outside) > MOST_KEPT:
        return None
    base = unaltered()
    if base is None:
        return None
    chosen, widths, left = _chosen(program, drawn)

    def rows_of(values: Tensor, axis: int) -> Tensor:
        return blocks(values, axis, program.size)[list(chosen)].clone()

    def part(key: Hashable, slot: int) -> _Part:
        values = program.sources[slot].values
        axis = row_axis(program, slot, values)
        return _Part(key, values.clone() if axis is None else rows_of(values, axis), axis)

    gradients: list[Tensor | None] = []
    for slot in outputs:
        gradient, axis = base.gradients[program.outputs.index(slot)], row_axis(program, slot, base.values[slot])
        gradients.append(None if gradient is None or axis is None else rows_of(gradient, axis))
    paths = {
        path: slot
        for slot, path in program.paths.items()
        if row_axis(program, slot, program.sources[slot].values) is not None
    }
    keyed = [(key_from_outside(program, slot), slot) for slot in outside]
    return _Kept(
        program.size,
        widths,
        left,
        {path: part(path, slot) for path, slot in paths.items()},
        [part(key_of_output(program, slot), slot) for slot in outputs],
        [part(key, slot) if key[0] else _Part(key, program.sources[slot].values.clone(), None) for key, slot in keyed],
        gradients,
        [base.values[end.slot][list(chosen)] for end in program.ends] if kinds == {True} else [],
        [*(rows_at(program, slot, base.values.get(slot), chosen) for slot in program.inputs), *program.alike],
        kinds == {True},
        program.numbers_outside,
        program.seed,
        program.sets_seed,
    )


def _chosen(program: Program, drawn: Drawn) -> tuple[Sequence[int], Sequence[OwnWidth], bool]:
    """Return the rows to keep: the shortest where some are padded, as they fit into most items."""
    widths = sorted(drawn.short_records, key=lambda width: min(own / length for length, own in width.lengths.items()))
    for left in (False, True):
        padded = [width for width in widths if is_padded(program, width, left)][:ROWS]
        if padded:
            return [width.row for width in padded], padded, left
    return range(min(ROWS, program.size)), [], False
