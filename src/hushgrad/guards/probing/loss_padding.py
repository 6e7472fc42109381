"""Does one example's loss follow how far it is padded? Asked by running a loop's program again on a longer batch.

Its rows, and what the model gave for them, go on beyond their end, as they would beside a longer record: losses and
gradients of the shorter records must stay, and what the model is given for them (see `given_padding`). A length that
Python was told (`x.shape[1]`, `len(row)`, `x.numel()`) and that a loss was divided by does not change in such a run: a
number of the losses', or of what the model is given, that is a function of one which did is altered by itself, and
nothing may follow it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence, Set
from dataclasses import replace
from functools import partial

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.given_padding import GivenPadding, given_differs
from hushgrad.guards.probing.loop_numbers import Line, LoopNumbers, line_of
from hushgrad.guards.probing.loss_numbers import NumbersTaken
from hushgrad.guards.probing.loss_program import Made, Program
from hushgrad.guards.probing.loss_replay import NotRunningError, Replay, differing, replayed
from hushgrad.guards.probing.narrowing import cut_like
from hushgrad.guards.probing.other_widths import OtherWidth, run_evenly, shortest_of, unchanged_owners
from hushgrad.guards.probing.positions import Positions
from hushgrad.guards.probing.widths import Drawn, OwnWidth

OTHERWISE = 1.5
"""The factor by which a number is altered that may follow the length of a batch."""

CURE = "Average over the example's own tokens: (losses * mask).sum(1) / mask.sum(1)"
CURE_OF_GIVEN = (
    "Pool over the example's own positions: (x * mask).sum(1) / mask.sum(1). A constant to which the loop pads must "
    "stand as a number in the function that pads"
)

LOSS = "the loss of one example"
GIVEN = "what the model is given for one example"

OUTPUTS = "whether losses follow how far a batch is padded, since the model does not run on one record alone"
INPUTS = (
    "whether what the loop computes before it calls the model follows how far a batch is padded, since its calls do "
    "not run on another width"
)
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
        self._are_inputs_known = True

    @property
    def untold(self) -> tuple[str, ...]:
        """What is on trust, as far as no later item has told it."""
        found = [(OUTPUTS, not self._are_outputs_known), (INPUTS, not self._are_inputs_known)]
        return tuple(what for what, is_untold in (*found, (NUMBERS, bool(self._suspects))) if is_untold)

    def require_same(self, program: Program, drawn: Drawn, *, is_reordered: bool = False) -> None:
        """Refuse losses of short records that change when the batch is padded further, as to a longer one.

        So what the model is given for them.

        Args:
            program: of an item, which was run again and is repeatable, and whose numbers were noted.
            drawn: the item.
            is_reordered: whether the loop gives the model the rows of the item in another order.

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
        given = GivenPadding(program, drawn, self._positions, is_reordered=is_reordered)
        if program.entries:
            self._require_same_of_lists(program, drawn, base, given, is_reordered)
        for left in (False, True):
            padded = [width for width in widths if is_padded(program, width, left)]
            rows = [width.row for width in padded]
            if rows:
                if (call := given.following(padded, left)) is not None:
                    raise _leak(call, GIVEN)
                further = OtherWidth(program, widths, left, self._positions)
                numbers = self._numbers_of_longer(program, base, further, left, rows)
                self._require_no_numbers(program, base, numbers, further.lengths, drawn)
                if not is_reordered:
                    self._require_same_alone(program, widths, left, padded)
        self._are_inputs_known = self._are_inputs_known and not given.is_untold

    def _require_same_of_lists(
        self, program: Program, drawn: Drawn, base: Replay, given: GivenPadding, is_reordered: bool
    ) -> None:
        """Do so for lists with an entry for each record, which the loop pads on either side."""
        widths = drawn.short_records
        if (call := given.following_in_lists(widths)) is not None:
            raise _leak(call, GIVEN)
        rows = sorted(unchanged_owners(program, drawn.lists))
        for left in (False, True) if rows else ():
            further = OtherWidth(program, widths, left, self._positions, lists=drawn.lists)
            try:
                numbers = self._numbers_of_longer(program, base, further, left, [] if is_reordered else rows)
            except CrossSampleLeakError:
                if left:
                    raise
                continue
            return self._require_no_numbers(program, base, numbers, further.lengths, drawn)

    def _numbers_of_longer(
        self, program: Program, base: Replay, further: OtherWidth, left: bool, rows: Sequence[int]
    ) -> Mapping[int, object]:
        """Run the longer batch, and return the numbers that left torch then, by call."""
        try:
            longer = replayed(program, further.sources())
        except NotRunningError as failure:
            return failure.numbers
        if _differs(program, base, longer, left, rows):
            if not further.is_guess:
                raise _leak(_last(program))
            try:
                longer = replayed(program, further.sources(guess=False))
            except NotRunningError:
                raise _leak(_last(program)) from None
            if _differs(program, base, longer, left, rows):
                raise _leak(_last(program))
            self._are_outputs_known = False
        return longer.numbers

    def _require_same_alone(
        self, program: Program, widths: Sequence[OwnWidth], left: bool, padded: Sequence[OwnWidth]
    ) -> None:
        """Refuse losses that change when the batch is cut to a record's own width: a maximum may be of padding."""
        for width in shortest_of(padded):
            # A shift leaves a record that is padded on the left one target more, beside a longer one.
            shifted = replace(width, lengths={n: min(n, own + 1) for n, own in width.lengths.items()}, alone={})
            if all(self._differ_alone(program, widths, left, own) for own in ([width, shifted] if left else [width])):
                raise _leak(_last(program))

    def _differ_alone(self, program: Program, widths: Sequence[OwnWidth], left: bool, own: OwnWidth) -> bool:
        """Whether a record's losses or gradients differ on a batch of this width; not where it does not run."""
        alone = OtherWidth(program, widths, left, self._positions, own)
        run = partial(run_evenly, program)
        try:
            base = run({})
            if not _differs(program, base, alone.run(run), left, [own.row]):
                return False
            if alone.is_guess and not _differs(program, base, alone.run(run, guess=False), left, [own.row]):
                self._are_outputs_known = False
                return False
        except NotRunningError:
            return False
        return True

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


def _differs(program: Program, base: Replay, longer: Replay, left: bool, rows: Sequence[int]) -> bool:
    """Whether the rows have other losses or gradients, where they had any."""
    pairs = list(zip(base.gradients, longer.gradients, strict=True))
    before = [one if one is None or other is None else cut_like(one, other, left) for one, other in pairs]
    after = [None if one is None or other is None else cut_like(other, one, left) for one, other in pairs]
    return differing(program, replace(base, gradients=before), replace(longer, gradients=after), rows) is not None


def is_padded(program: Program, width: OwnWidth, left: bool) -> bool:
    """Whether a record ends in padding, or begins with it, in every part of the item that is padded."""
    is_any = False
    for slot, source in program.sources.items():
        values = source.values
        if source.kind != "item" or slot in program.entries or program.axes.get(slot, 0) or values.ndim < 2:
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
    """Whether losses, gradients or what the model is given change with numbers of one call."""

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
            changed = replayed(program, altered, other)
            if differing(program, base, changed, everyone) is not None or given_differs(program, base, changed):
                return True
        except NotRunningError:
            continue
    return False


def _last(program: Program) -> Made | None:
    return program.calls[program.last - 1] if program.last else None


def _leak(call: Made | None, what: str = LOSS) -> CrossSampleLeakError:
    return CrossSampleLeakError(
        f"{what} is divided by (or made of) how far it is padded, which the longest record of its batch decides",
        where="" if call is None else str(call),
        cure=CURE if what == LOSS else CURE_OF_GIVEN,
    )
