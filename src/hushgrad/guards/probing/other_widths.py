"""A loop's program on a batch of another width: padded further, as beside a longer record, or cut to a record's own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from typing import Any

import torch
from torch import Size, Tensor

from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.guards.probing.loss_numbers import ARITHMETIC
from hushgrad.guards.probing.loss_program import Made, Program
from hushgrad.guards.probing.loss_replay import NotRunningError, Number, Replay, replayed, row_axis
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.state import forked_randomness
from hushgrad.guards.probing.trees import Path
from hushgrad.guards.probing.widths import OwnWidth

FURTHER = 3
"""By so many positions batches are padded further."""

MOST_ALONE = 2
"""To the own widths of so many records batches are cut."""

LEAST = 5
"""A whole number below this, of a call that is no arithmetic, is an axis or an index, and not a length."""


class OtherWidth:
    """A program's item and outputs at another width.

    Attributes:
        lengths: those of the batch along which records are shorter.
        is_guess: whether an output was taken for one over positions by its length alone.

    Args:
        program: of the item.
        widths: the own lengths of records that are shorter than the longest.
        left: whether padding is on the left.
        positions: which outputs of the model have positions, as far as it is known.
        own: the record to whose own width all is cut; None to pad further.
        lists: the paths of lists in the item that have an entry for each record.
    """

    def __init__(
        self,
        program: Program,
        widths: Sequence[OwnWidth],
        left: bool,
        positions: Positions,
        own: OwnWidth | None = None,
        lists: Set[Path] = frozenset(),
    ) -> None:
        self._program = program
        self._widths = widths
        self._left = left
        self._positions = positions
        self._own = own
        self._entries = _entries_by_list(program, lists)
        self.lengths = {length for width in widths for length in width.lengths}
        self.is_guess = False

    def sources(self, *, guess: bool = True) -> dict[int, Tensor]:
        """Return the item and the outputs, by slot; without `guess` only what is known to have positions changes."""
        found: dict[int, Tensor] = {}
        for slot, source in self._program.sources.items():
            if source.kind not in ("item", "output"):
                continue
            values = source.values
            axis = None
            if slot not in self._program.flat.roles and slot not in self._program.entries:
                axis = self._axis(slot, values, guess)
            found[slot] = values if axis is None else self._resized(values, axis, self._length(slot, values, axis))
        for entries in self._entries:
            found |= self._of_entries(entries)
        return found

    def run(self, replay: Callable[[dict[int, Tensor], Number], Replay], *, guess: bool = True) -> Replay:
        """Run the program at this width: lengths among the numbers of its calls become those of this width if need be.

        Raises:
            NotRunningError: it fails on it.
        """
        sources, remade = self.sources(guess=guess), self._remade()
        plain: tuple[dict[int, Tensor], Number] = sources, self._to_constant
        resized: tuple[dict[int, Tensor], Number] = {**sources, **remade}, self._number
        first, second = (resized, plain) if remade or self._entries else (plain, resized)
        try:
            return replay(*first)
        except NotRunningError:
            return replay(*second)

    # Tensors ---------------------------------------------------------------------------------------------------------

    def _length(self, slot: int, values: Tensor, axis: int) -> int:
        length = values.shape[axis]
        if self._own is None:
            return length + FURTHER
        path = self._program.paths.get(slot)
        alone = None if path is None else self._own.alone.get(path)
        if alone is not None and alone.ndim == values.ndim:
            return min(length, alone.shape[axis])
        own = self._own.of(length)
        is_other = length not in self._own.lengths and length + 1 not in self._own.lengths
        return min(length, *self._own.lengths.values()) if is_other else own

    def _resized(self, values: Tensor, axis: int, length: int) -> Tensor:
        before = values.shape[axis]
        if length <= before:
            return values.narrow(axis, before - length if self._left else 0, length)
        end = [values.narrow(axis, 0 if self._left else before - 1, 1)] * (length - before)
        return torch.cat([*end, values] if self._left else [values, *end], axis)

    def _of_entries(self, entries: Mapping[int, tuple[int, Tensor]]) -> dict[int, Tensor]:
        """Return the entries of one list, by slot: the longest made longer, or all cut to one's own length."""
        tensors = [tensor for _, tensor in entries.values()]
        axes = [n for n in range(tensors[0].ndim) if len({tensor.shape[n] for tensor in tensors}) > 1]
        found: dict[int, Tensor] = {}
        for axis in axes[:1]:
            longest = max(tensor.shape[axis] for tensor in tensors)
            own = {index: tensor.shape[axis] for index, tensor in entries.values()}
            for slot, (_, tensor) in entries.items():
                length = tensor.shape[axis]
                if self._own is None and length == longest:
                    found[slot] = self._resized(tensor, axis, length + FURTHER)
                elif self._own is not None and 0 < own.get(self._own.row, length) < length:
                    found[slot] = self._resized(tensor, axis, own[self._own.row])
        return found

    def _axis(self, slot: int, values: Tensor, guess: bool) -> int | None:
        of_batch = row_axis(self._program, slot, values)
        made_by = self._program.made_by.get(slot)
        known = None if made_by is None else self._positions.of(*made_by)
        if known is None:
            known = self._of_item(slot, values, of_batch)
        if known is not None:
            return min(known, default=None)
        others = [axis for axis in range(values.ndim) if axis != of_batch]
        if not others or not {values.shape[others[0]], values.shape[others[0]] + 1} & self.lengths:
            return None
        if made_by is not None:
            self.is_guess = True
            if not guess:
                return None
        elif self._entries:
            return None
        return others[0]

    def _of_item(self, slot: int, values: Tensor, of_batch: int | None) -> frozenset[int] | None:
        """Return the axes along which records of the item are shorter when they come alone; None if none tells."""
        path = self._program.paths.get(slot)
        others = [] if path is None else [width.alone[path] for width in self._widths if path in width.alone]
        if not others or any(other.ndim != values.ndim for other in others):
            return None
        places = [axis for axis in range(values.ndim) if axis != of_batch]
        return frozenset(n for n in places if any(other.shape[n] < values.shape[n] for other in others))

    # Numbers ---------------------------------------------------------------------------------------------------------

    def _remade(self) -> dict[int, Tensor]:
        """Return the loop's own tensors that were made of a length of the batch alone, made of the other one."""
        found: dict[int, Tensor] = {}
        table = self._table()
        for slot, recipe in self._program.recipes.items():
            values = self._program.sources[slot].values
            try:
                with forked_randomness([values.device], SEED):
                    again, other = recipe({}), recipe(table)
            except Exception:  # a length that something else must equal
                continue
            if isinstance(other, Tensor) and isinstance(again, Tensor) and torch.equal(again, values):
                is_changed = other.shape != again.shape or not torch.equal(other, again)
                found |= {slot: other} if is_changed else {}
        return found

    def _other(self, length: int) -> int:
        """Return what a length of the batch is at this width."""
        return length + FURTHER if self._own is None else self._own.of(length)

    def _table(self) -> dict[int, int]:
        found: dict[int, int] = {}
        for length in sorted(self.lengths):
            other = self._other(length)
            pairs = {length: other, length - 1: other - 1, self._program.size * length: self._program.size * other}
            found |= {one: two for one, two in pairs.items() if one >= LEAST and one not in self.lengths - {length}}
        return found

    def _to_constant(self, value: Any, call: Made) -> Any:
        """Return by how much a call pads, if to a constant that stands in the code, and up to which length one cuts."""
        if isinstance(value, slice):
            return self._resized_slice(value, call)
        if call.name == "pad" and type(value) is int and value:
            for length in self.lengths:
                if value + length in call.place.numbers:
                    return value - (self._other(length) - length)
        return value

    def _number(self, value: Any, call: Made) -> Any:
        if call.name in ARITHMETIC:
            return value
        if call.name == "pad" and type(value) is int:
            constant = self._to_constant(value, call)
            return self._padded_like(value) if constant == value else constant
        table = self._table()

        def resized(number: Any) -> Any:
            is_length = type(number) is int and number not in call.place.numbers
            return table.get(number, number) if is_length else number

        if isinstance(value, Size):
            return Size(resized(number) for number in value)
        return self._resized_slice(value, call) if isinstance(value, slice) else resized(value)

    def _resized_slice(self, value: slice, call: Made) -> slice:
        if type(value.stop) is not int or value.stop in call.place.numbers:
            return value
        return slice(value.start, self._table().get(value.stop, value.stop), value.step)

    def _padded_like(self, number: int) -> int:
        """Return by how much an entry of a list is padded to the longest, which is of another length now."""
        own = {length for entries in self._entries for _, tensor in entries.values() for length in tensor.shape}
        for length in self.lengths:
            if number and length - number in own:
                return max(0, number + self._other(length) - length)
        return number


def shortest_of(widths: Sequence[OwnWidth]) -> Sequence[OwnWidth]:
    """Return the records to whose own widths batches are cut: those with the most padding."""
    return sorted(widths, key=lambda width: min(own / length for length, own in width.lengths.items()))[:MOST_ALONE]


def run_evenly(program: Program, sources: Mapping[int, Tensor], number: Number = lambda value, call: value) -> Replay:
    """Run a program with one constant for all random numbers: those of other shapes are others.

    Raises:
        NotRunningError: it fails, or draws in a way that has no such form.
    """
    with DeterministicMode() as quiet:
        found = replayed(program, sources, number)
    if quiet.unknown is not None:
        raise NotRunningError({})
    return found


def unchanged_owners(program: Program, lists: Set[Path]) -> set[int]:
    """Return those who have entries of their own in lists of several lengths, of which none is the longest."""
    groups = _entries_by_list(program, lists)
    found: list[set[int]] = []
    for entries in groups:
        most = max(tensor.numel() for _, tensor in entries.values())
        own = {index for slot, (index, _) in entries.items() if program.entries[slot] == index}  # and nobody else's
        found.append(own - {index for index, tensor in entries.values() if tensor.numel() == most})
    return set.intersection(*found) if found else set()


def _entries_by_list(program: Program, lists: Set[Path]) -> list[dict[int, tuple[int, Tensor]]]:
    """Return the entries of each list of tensors of several lengths, by slot: their place in the list, and values."""
    groups: dict[Path, dict[int, tuple[int, Tensor]]] = {}
    for slot in program.entries:
        path = program.paths.get(slot, ())
        place = next((n for n in range(len(path)) if path[:n] in lists), None)
        if place is not None and isinstance(path[place], int):
            key = (*path[:place], None, *path[place + 1 :])
            groups.setdefault(key, {})[slot] = path[place], program.sources[slot].values
    found = []
    for entries in groups.values():
        tensors = [tensor for _, tensor in entries.values()]
        if len({tensor.ndim for tensor in tensors}) == 1 and len({tensor.shape for tensor in tensors}) > 1:
            found.append(entries)
    return found
