"""Does one example's loss follow how far it is padded? Asked by running a loop's program again on a longer batch.

Its rows, and what the model gave for them, go on beyond their end, as they would beside a longer record: losses and
gradients of the shorter records must stay. A length that Python was told (`x.shape[1]`, `len(row)`, `x.numel()`) and
that a loss was divided by does not change in such a run: a number of the losses' that is a function of one which did
is altered by itself, and nothing may follow it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace

import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loop_numbers import Line, LoopNumbers, line_of
from hushgrad.guards.probing.loss_numbers import NumbersTaken
from hushgrad.guards.probing.loss_program import Made, Program
from hushgrad.guards.probing.loss_replay import NotRunningError, Replay, differing, replayed, row_axis
from hushgrad.guards.probing.narrowing import cut_like
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.widths import Drawn, OwnWidth

FURTHER = 3
"""By so many positions batches are padded further."""

OTHERWISE = 1.5
"""The factor by which a number is altered that may follow the length of a batch."""

CURE = "Average over the example's own tokens: (losses * mask).sum(1) / mask.sum(1)"

OUTPUTS = "whether losses follow how far a batch is padded, since the model does not run on one record alone"
NUMBERS = (
    "whether a number in the loss that equals the length of the batches is a constant: if it is one, write it into the "
    "code that computes the loss"
)


class LossPadding:
    """Asks it of one session's programs.

    A number that equals the length of the batch may also be a constant, to which records are cut: where several records
    are so long, a later item of another length tells.

    Args:
        positions: which outputs of the model have positions, as far as it is known.
        numbers: what is known of the loop's numbers.
    """

    def __init__(self, positions: Positions, numbers: LoopNumbers) -> None:
        self._positions = positions
        self._numbers = numbers
        self._suspects: dict[Line, tuple[Made, list[float], Set[int]]] = {}  # a call, its numbers, the batch's lengths
        self._are_outputs_known = True

    @property
    def untold(self) -> tuple[str, ...]:
        """What is on trust, as far as no later item has told it."""
        return (*([] if self._are_outputs_known else [OUTPUTS]), *([NUMBERS] if self._suspects else []))

    def require_same(self, program: Program, drawn: Drawn) -> None:
        """Refuse losses of short records that change when the batch is padded further, as to a longer one.

        Args:
            program: of an item, which was run again and is repeatable, and whose numbers were noted.
            drawn: the item.

        Raises:
            CrossSampleLeakError: they change; `where` names the call.
        """
        widths = drawn.short_records
        if not widths and not self._suspects:
            return
        try:
            base = replayed(program, {})
        except NotRunningError:
            return
        for line, suspect in list(self._suspects.items()):
            if self._numbers.are_constant(*suspect):
                del self._suspects[line]
        for left in (False, True):
            rows = [width.row for width in widths if is_padded(program, width, left)]
            if rows:
                further = _Longer(program, widths, left, self._positions)
                numbers = self._numbers_of_longer(program, base, further, rows)
                self._require_no_numbers(program, base, numbers, further.lengths, drawn)

    def _numbers_of_longer(
        self, program: Program, base: Replay, further: _Longer, rows: Sequence[int]
    ) -> Mapping[int, object]:
        """Run the longer batch, and return the numbers that left torch then, by call."""
        try:
            longer = replayed(program, further.sources())
        except NotRunningError as failure:
            return failure.numbers
        if further.differs(base, longer, rows):
            if not further.is_guess:
                raise _leak(_last(program))
            try:
                longer = replayed(program, further.sources(guess=False))
            except NotRunningError:
                raise _leak(_last(program)) from None
            if further.differs(base, longer, rows):
                raise _leak(_last(program))
            self._are_outputs_known = False
        return longer.numbers

    def _require_no_numbers(
        self, program: Program, base: Replay, numbers: Mapping[int, object], lengths: Set[int], drawn: Drawn
    ) -> None:
        is_cut = sum(extent >= max(lengths) for extent in drawn.extents) > 1  # so many, as where a constant cuts them
        for place, found in NumbersTaken(program, base.numbers).following(numbers):
            call = program.calls[place]
            if self._numbers.are_constant(call, found, lengths) or not _matters(program, base, place, found):
                continue
            before = self._suspects.get(line_of(call))
            if not is_cut or (before is not None and before[1] != found):
                raise _leak(call)
            self._suspects[line_of(call)] = call, found, lengths


class _Longer:
    """A program's item and outputs, padded further.

    Attributes:
        lengths: those of the batch along which records are shorter.
        is_guess: whether an output was taken for one over positions by its length alone.
    """

    def __init__(self, program: Program, widths: Sequence[OwnWidth], left: bool, positions: Positions) -> None:
        self._program = program
        self._widths = widths
        self._left = left
        self._positions = positions
        self.lengths = {length for width in widths for length in width.lengths}
        self.is_guess = False

    def sources(self, *, guess: bool = True) -> dict[int, Tensor]:
        """Return the item and the outputs, by slot; without `guess` only what is known to have positions is longer."""
        found: dict[int, Tensor] = {}
        for slot, source in self._program.sources.items():
            if source.kind not in ("item", "output"):
                continue
            values = source.values
            axis = None
            if slot not in self._program.flat.roles and slot not in self._program.entries:
                axis = self._axis(slot, values, guess)
            if axis is not None:
                end = values.narrow(axis, 0 if self._left else values.shape[axis] - 1, 1)
                parts = [*[end] * FURTHER, values] if self._left else [values, *[end] * FURTHER]
                values = torch.cat(parts, axis)
            found[slot] = values
        return found

    def differs(self, base: Replay, longer: Replay, rows: Sequence[int]) -> bool:
        """Whether the rows have other losses or gradients, where they had any."""
        gradients = [
            None if one is None or other is None else cut_like(other, one, self._left)
            for one, other in zip(base.gradients, longer.gradients, strict=True)
        ]
        return differing(self._program, base, replace(longer, gradients=gradients), rows) is not None

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
        return others[0]

    def _of_item(self, slot: int, values: Tensor, of_batch: int | None) -> frozenset[int] | None:
        """Return the axes along which records of the item are shorter when they come alone; None if none tells."""
        path = self._program.paths.get(slot)
        others = [] if path is None else [width.alone[path] for width in self._widths if path in width.alone]
        if not others or any(other.ndim != values.ndim for other in others):
            return None
        places = [axis for axis in range(values.ndim) if axis != of_batch]
        return frozenset(n for n in places if any(other.shape[n] < values.shape[n] for other in others))


def is_padded(program: Program, width: OwnWidth, left: bool) -> bool:
    """Whether a record ends in padding, or begins with it, in every part of the item that is padded."""
    is_any = False
    for slot, source in program.sources.items():
        values = source.values
        if source.kind != "item" or program.axes.get(slot, 0) or values.ndim < 2:
            continue
        length, own = values.shape[1], width.lengths.get(values.shape[1], values.shape[1])
        if values.shape[0] == program.size and own < length:
            row = values[width.row]
            beyond, kept = (row[: length - own], row[length - own :]) if left else (row[own:], row[:own])
            if not bool((beyond == beyond[:1]).all()):
                return False
            if width.alone and not width.is_alone(kept):
                return False  # a single position is always equal to itself: what is left is not the record
            is_any = True
    return is_any


def _matters(program: Program, base: Replay, place: int, numbers: Sequence[float]) -> bool:
    """Whether losses or gradients change with numbers of one call."""

    def other(value: object, call: Made) -> object:
        is_number = call is program.calls[place] and isinstance(value, (int, float)) and not isinstance(value, bool)
        return value * OTHERWISE if is_number and float(value) in numbers else value  # type: ignore[operator, arg-type]

    single = {
        slot: source.values * OTHERWISE
        for slot, source in program.sources.items()
        if source.kind in ("number", "constant") and source.values.numel() == 1 and float(source.values.real) in numbers
    }
    everyone = range(program.size)
    for altered in ({}, single) if single else ({},):
        try:
            if differing(program, base, replayed(program, altered, other), everyone) is not None:
                return True
        except NotRunningError:
            continue
    return False


def _last(program: Program) -> Made | None:
    return program.calls[program.last - 1] if program.last else None


def _leak(call: Made | None) -> CrossSampleLeakError:
    return CrossSampleLeakError(
        "the loss of one example is divided by (or made of) how far it is padded, which the longest record of its "
        "batch decides",
        where="" if call is None else str(call),
        cure=CURE,
    )
