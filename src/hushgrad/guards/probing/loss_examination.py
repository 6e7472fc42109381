"""Does one example's loss or gradient depend on another's row of anything? Asked by running a loop's program again.

The rows of some examples are exchanged in the item and in the model's outputs; the gradient that comes back to the
outputs of all others must stay what it was, and so must their losses. This sees what the graph of a loss cannot show:
factors and targets without a gradient, choices among examples, divisors that the batch decides. Then one example is
left out (in 16 bits, which do not show so small a share, half of them): a mean over the batch grows by a known factor,
a sum does not.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from hushgrad.capture.axes.batch_axes import NARROW
from hushgrad.errors import CrossSampleLeakError, LossShapeError
from hushgrad.guards.probing.live_memory import WRITTEN_UNSEEN
from hushgrad.guards.probing.loop_numbers import LoopNumbers
from hushgrad.guards.probing.loss_numbers import ARITHMETIC, NumbersTaken
from hushgrad.guards.probing.loss_program import Given, Made, Program
from hushgrad.guards.probing.loss_replay import (
    NotRunningError,
    Replay,
    differing,
    first_call,
    is_same,
    replayed,
    row_axis,
)
from hushgrad.guards.probing.rows import AWAY, blocks, neighbours, split_examples
from hushgrad.torch_internals import version

CURE = (
    "Give each example one loss, of its own outputs and targets alone: engine.per_example(criterion), or "
    "engine.session.backward(losses) with losses of shape [B]. Divide by nothing, weigh by nothing and choose by "
    "nothing that other examples of the batch decide"
)

REORDERED = "the loop changes the order of rows"
"""Why a program could not be told: outputs belong to other rows of the item than they seem to."""

SMALLEST = 3
"""Of fewer examples none is left out."""


def require_separate_program(
    program: Program, loss_reduction: str, expected_size: float | None, known: LoopNumbers | None = None
) -> str:
    """Run the calls of an item again on altered examples, and compare what the others get.

    Args:
        program: of the item.
        loss_reduction: as declared.
        expected_size: the expected batch size, by which losses may be divided; None where it is not known.
        known: what other items showed of the loop's numbers.

    Returns why it could not be told, "" where it could: neither the losses nor gradients of others changed, and all of
    the loop's calls were seen.

    Raises:
        CrossSampleLeakError: they changed; `where` names the call and its line.
        LossShapeError: the loss is a sum where a mean was declared, or the reverse.
    """
    if not program.ends or program.size < 2:
        return program.hidden
    if any(version(source.values) != source.version for source in program.sources.values()):
        return WRITTEN_UNSEEN
    try:
        base, again = replayed(program, {}), replayed(program, {})
    except NotRunningError:
        return program.hidden or "its calls cannot be run again"
    if differing(program, base, again, range(program.size)) is not None:
        return program.hidden or "its calls give other values each time"
    return _Examination(program, base, known or LoopNumbers()).run(loss_reduction, expected_size)


class _Examination:
    def __init__(self, program: Program, base: Replay, known: LoopNumbers) -> None:
        self._known = known
        self._program = program
        self._base = base
        self._numbers = NumbersTaken(program, base.numbers)
        is_narrow = any(part is not None and part.dtype in NARROW for part in base.gradients)
        self._fewer = program.size - (program.size // 2 if is_narrow else 1)

    def run(self, loss_reduction: str, expected_size: float | None) -> str:
        program, why = self._program, self._program.hidden
        some, rest = split_examples(program.size)
        for half, (chosen, kept) in enumerate(((some, rest), (rest, some))):
            for away in (False, True):
                try:
                    changed = replayed(program, self._altered(chosen, away))
                except NotRunningError:
                    why = why if away else why or "its calls cannot be run on other examples"
                    continue
                if self._is_reordered(changed, kept):
                    return why or REORDERED
                self._numbers.note(half, changed.numbers)
                found = differing(program, self._base, changed, kept)
                if found is not None:
                    raise _leak(found, self._culprit(changed, kept))
        program.reads_values = self._numbers.have_left()
        if (old := self._numbers.of_earlier() or self._reads_earlier()) is not None:
            raise CrossSampleLeakError(
                "values of an earlier batch enter the loss, or what the model is given: what was kept of its examples "
                "then changes the gradients of others now",
                where=str(old),
                cure="Keep nothing of a batch for a later one: no running statistics, centres, queues or states",
            )
        if (given := self._numbers.given()) is not None:
            raise _leak("a number that the model is given, computed from the batch,", given)
        if (call := self._numbers.used()) is not None:
            raise _leak("the loss of one example, by a number or a decision that the batch made,", call)
        if (call := self._numbers.read_backward()) is not None:
            raise _leak("the gradient of one example, by a number that the loop's own backward code reads,", call)
        if (call := self._numbers.of_single_rows()) is not None and self._has_idle_rows():
            raise _leak("the part of some examples in the loss, by what Python made of numbers of single ones,", call)
        self._leave_out(loss_reduction, expected_size)
        program.doubt = self._numbers.doubt()
        return why

    def _reads_earlier(self) -> Made | None:
        """Return a call of the program's if other values in tensors of earlier items change what comes out."""
        old = {
            slot: source.values * 1.5 + 1
            for slot, source in self._program.sources.items()
            if source.kind == "earlier" and source.values.is_floating_point()
        }
        if not old:
            return None
        try:
            changed = replayed(self._program, old)
        except NotRunningError:
            return None
        everyone = range(self._program.size)
        is_given = any(
            not is_same(one.reshape(1, -1), changed.values[slot].reshape(1, -1))
            for slot in self._program.inputs
            if (one := self._base.values.get(slot)) is not None
        )
        if not is_given and differing(self._program, self._base, changed, everyone) is None:
            return None
        return self._culprit(changed, everyone)

    def _altered(self, chosen: Sequence[int], away: bool) -> dict[int, Tensor]:
        """Return the item and the outputs with the rows of some examples exchanged for their neighbours'."""
        size = self._program.size
        found: dict[int, Tensor] = {}
        for slot, source in self._program.sources.items():
            if source.kind not in ("item", "output"):
                continue
            values = source.values
            if slot in self._program.entries:
                if self._program.entries[slot] in chosen:
                    found[slot] = _other_values(values, away)
                continue
            if slot in self._program.flat.roles:
                far = AWAY * max(1.0, _largest(values)) if away and values.is_floating_point() else None
                found[slot] = self._program.flat.altered(slot, values, chosen, far, AWAY)
                continue
            axis = row_axis(self._program, slot, values)
            if axis is None:
                if source.kind == "output" and values.numel() == 1:
                    found[slot] = values * 1.5 + 0.1
                continue
            changed = values.clone(memory_format=torch.contiguous_format)
            rows, old = blocks(changed, axis, size), blocks(values, axis, size)
            beyond = AWAY * max(1.0, _largest(values)) if away and values.is_floating_point() else None
            for example, other in neighbours(chosen, size).items():
                row = old[other]
                rows[example] = row if beyond is None else row * AWAY + beyond  # it decides any maximum
            found[slot] = changed
        return found

    def _is_reordered(self, changed: Replay, kept: Sequence[int]) -> bool:
        """Whether the model was given rows in an order that depends on the others: outputs belong to other rows then.

        Raises:
            CrossSampleLeakError: what it was given mixes them.
        """
        size = self._program.size
        for slot in self._program.inputs:
            one, other = self._base.values.get(slot), changed.values.get(slot)
            if one is None or other is None or one.shape != other.shape:
                continue
            if slot in self._program.entries:
                if self._program.entries[slot] in kept and not is_same(one.reshape(1, -1), other.reshape(1, -1)):
                    raise _leak("what the model is given for one example", self._culprit(changed, kept))
                continue
            axis = row_axis(self._program, slot, one)
            if (owners := self._program.flat.of_rows(one)) is not None and slot not in self._program.axes:
                stayed = torch.isin(owners, torch.tensor(kept, device=owners.device))
                if not is_same(one[stayed], other[stayed]):
                    raise _leak("what the model is given for one example", self._culprit(changed, kept))
                continue
            if axis is None:
                if not is_same(one.reshape(1, -1), other.reshape(1, -1)):
                    raise _leak("a tensor that the model is given for all examples", self._culprit(changed, kept))
                continue
            before, after = blocks(one, axis, size), blocks(other, axis, size)
            if is_same(before[list(kept)], after[list(kept)]):
                continue
            unmoved = (before.reshape(size, 1, -1) == after.reshape(1, size, -1)).all(2).any(1)
            if int(unmoved.sum()) >= len(kept):
                return True
            raise _leak("what the model is given for one example", self._culprit(changed, kept))
        return False

    def _culprit(self, changed: Replay, kept: Sequence[int]) -> Made | None:
        """Return the first call that made another row of an example that was kept, else the last call."""
        rows = list(kept)
        return first_call(self._program, self._base, changed, lambda one, other: not is_same(one[rows], other[rows]))

    def _has_idle_rows(self) -> bool:
        """Whether some examples get no gradient, and others do."""
        size = self._program.size
        reached = torch.zeros(size, dtype=torch.bool)
        for slot, gradient in zip(self._program.outputs, self._base.gradients, strict=True):
            axis = None if gradient is None else row_axis(self._program, slot, gradient)
            if gradient is not None and axis is not None:
                reached |= blocks(gradient, axis, size).reshape(size, -1).ne(0).any(1).cpu()
        return bool(reached.any()) and not bool(reached.all())

    # Fewer examples ------------------------------------------------------------------------------------------------

    def _leave_out(self, loss_reduction: str, expected_size: float | None) -> None:
        """Refuse a sum where a mean was declared, the reverse, and losses that are divided by the number of examples.

        Numbers that are the batch's size are made less with it, but for constants that equal it by chance. Where the
        program cannot be run so, nothing shows.
        """
        size = self._program.size
        kinds = {end.is_rows for end in self._program.ends}
        is_public = expected_size == size and not self._numbers.holds_size()
        if size < SMALLEST or len(kinds) > 1 or (True in kinds and is_public) or self._is_square():
            return
        for is_multiple in (False, True):
            try:
                fewer = replayed(self._program, self._without_last(), partial(self._less, is_multiple))
            except NotRunningError:
                continue
            if any(not made.numel() and self._base.made[key].numel() for key, made in fewer.made.items()):
                continue  # a slice beyond the end: the calls were written out for each example
            self._compare_fewer(fewer, loss_reduction, is_rows=True in kinds)
            return

    def _less(self, is_multiple: bool, value: object, call: Made) -> object:
        """Return a number of a call for a batch of fewer examples."""
        less = _less(self._program.size, self._fewer, is_multiple, value)
        return value if less != value and call.name in ARITHMETIC and self._is_constant(call, value) else less

    def _is_constant(self, call: Made, value: object) -> bool:
        """Whether a number that equals the batch's size does so by chance.

        The first item tells where the loop asked no tensor for its size, or the number stands in its code.
        """
        size = self._program.size
        if self._known.are_constant(call, [float(value)], {size}):  # type: ignore[arg-type]
            return True
        return not self._numbers.holds_size() and not self._known.follow_size(call, size)

    def _is_square(self) -> bool:
        """Whether something has its examples on the second axis and as many on the first: which numbers are B?"""
        return any(
            axis == 1 and self._base.values[slot].shape[:1] == (self._program.size,)
            for slot, axis in self._program.axes.items()
        )

    def _without_last(self) -> dict[int, Tensor]:
        size = self._program.size
        found: dict[int, Tensor] = {}
        for slot, source in self._program.sources.items():
            values = source.values
            if slot in self._program.entries:
                continue
            if slot in self._program.flat.roles:
                found[slot] = self._program.flat.first(slot, values, self._fewer)
                continue
            axis = row_axis(self._program, slot, values) if source.kind in ("item", "output") else None
            if axis is not None:
                found[slot] = values.narrow(axis, 0, values.shape[axis] // size * self._fewer)
            elif values.ndim and values.shape[0] == size:
                found[slot] = values[: self._fewer]
            elif source.kind != "output" and values.numel() == 1 and float(values.real) == size:
                found[slot] = values - (size - self._fewer)
        return found

    def _compare_fewer(self, fewer: Replay, loss_reduction: str, *, is_rows: bool) -> None:
        size = self._program.size
        mean = size / self._fewer
        for slot, one, other in zip(self._program.outputs, self._base.gradients, fewer.gradients, strict=True):
            axis = None if one is None else row_axis(self._program, slot, one)
            if one is None or other is None or axis is None or not bool(one.any()):
                continue
            before, after = blocks(one, axis, size)[: self._fewer], blocks(other, axis, self._fewer)
            flat = before.reshape(len(before), -1)
            if not bool((flat.isfinite().all(1) & flat.any(1)).any()):
                continue  # nothing that tells
            if is_rows:
                if is_same(before, after, mean):
                    last = self._program.calls[self._program.last - 1]
                    raise _leak("each loss is divided by the number of examples in the batch, which", last)
                continue
            other_kind = {"mean": "sum", "sum": "mean"}[loss_reduction]
            if is_same(before, after, mean if other_kind == "mean" else 1.0):
                raise LossShapeError(
                    f"loss_reduction is {loss_reduction!r}, and the loss (or a part of it) is a {other_kind} over the "
                    f"batch: each example's gradient would be scaled by the number of examples in the batch, which is "
                    f"no constant",
                    cure=f"Pass loss_reduction={other_kind!r}, or make every part of the loss a {loss_reduction} over "
                    f"the batch",
                )


def _largest(values: Tensor) -> float:
    return float(values.abs().nan_to_num(0.0, 0.0, 0.0).max()) if values.numel() else 0.0


def _other_values(values: Tensor, away: bool) -> Tensor:
    """Return other values of the same shape for what one example holds by itself; whole numbers stay in their range."""
    if not values.is_floating_point() or not away:
        return values.flip(0) if values.ndim else values
    return values * AWAY + AWAY * max(1.0, _largest(values))


def _less(size: int, fewer: int, is_multiple: bool, value: object) -> object:
    """Return a number of the program for a batch of fewer examples."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value:
        return value
    if value == size or (is_multiple and isinstance(value, int) and value > size and value % size == 0):
        return type(value)(value // size * fewer)
    if isinstance(value, float) and abs(value * size - 1) < 1e-12:
        return 1 / fewer
    return value


def _leak(what: str, call: Made | Given | None) -> CrossSampleLeakError:
    return CrossSampleLeakError(
        f"the loop lets examples of a batch change each other: when some of them were exchanged or left out, {what} "
        f"changed for the others (batch statistics, a choice among examples, a weight or divisor that the batch "
        f"decides)",
        where="" if call is None else str(call),
        cure=CURE,
    )
