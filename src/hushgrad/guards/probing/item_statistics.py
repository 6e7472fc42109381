"""Do losses, or what the model is given, follow a number that `collate_fn` makes of the whole batch?

A length, a count or a flag beside the records' rows changes with other records. It may be used for what it is (to cut
padding off, to make a mask), and then nothing changes with it. So the loop's calls are run again with another value in
its place, and so are the numbers of these calls that are a simple function of one that Python can read.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_numbers import choosing_numbers
from hushgrad.guards.probing.loss_program import Made, Program
from hushgrad.guards.probing.loss_replay import NotRunningError, Replay, differing, first_call, is_same, replayed
from hushgrad.guards.probing.trees import DESCEND, Path, with_parts
from hushgrad.guards.probing.widths import Drawn

FURTHER = 3
"""By so much a whole number becomes larger, as with a longer record or more of what is counted."""

MOST_CALLS = 16
"""So many calls with a number that may be made of such a one are looked at."""

CURE = (
    "Let each record's row, loss and divisor be made of that record alone: average over its own tokens, cut nothing "
    "that is not padding, and give the model no number that other records decide"
)


def other_value(values: Tensor) -> Tensor:
    """Return another value of such a number."""
    if values.dtype is torch.bool:
        return ~values
    return values + FURTHER if not values.is_floating_point() else values * 1.5 + 1


def statistics_in(drawn: Drawn) -> tuple[list[Tensor], list[float]]:
    """Return the numbers of an item that other records change: those in tensors, and those that Python can read."""
    tensors: list[Tensor] = []
    numbers: list[float] = []
    if not drawn.statistics:  # asked for every item
        return tensors, numbers

    def visit(path: Path, part: Any) -> Any:
        if path in drawn.statistics:
            if isinstance(part, Tensor):
                tensors.append(part)
            elif isinstance(part, (int, np.integer, np.bool_)):
                numbers.append(float(part))
            elif isinstance(part, np.ndarray) and part.dtype.kind in "biu" and part.size <= MOST_CALLS:
                numbers.extend(float(one) for one in part.ravel())
        return part if isinstance(part, (Tensor, np.ndarray)) else DESCEND

    with_parts(drawn.item, visit)
    return tensors, numbers


def require_no_statistics(program: Program, drawn: Drawn) -> None:
    """Refuse losses, gradients and inputs of the model that change with such a number.

    Args:
        program: of the item, which was run again and is repeatable.
        drawn: the item.

    Raises:
        CrossSampleLeakError: they change; `where` names the call.
    """
    if not drawn.statistics:
        return
    try:
        base = replayed(program, {})
    except NotRunningError:
        return
    altered = {
        slot: other_value(source.values)
        for slot, source in program.sources.items()
        if source.kind == "item" and program.paths.get(slot) in drawn.statistics
    }
    for slot, value in altered.items():
        _require_same(program, base, {slot: value}, None)
    numbers = _made_of_them(statistics_in(drawn)[1])
    for call in list(_with_numbers(program, numbers))[:MOST_CALLS]:
        _require_same(program, base, {}, (call, numbers))


def _require_same(
    program: Program, base: Replay, altered: dict[int, Tensor], used: tuple[Made, Sequence[float]] | None
) -> None:
    def other(value: Any, call: Made) -> Any:
        if used is None or call is not used[0]:
            return value
        if isinstance(value, slice):
            return slice(*(other(part, call) for part in (value.start, value.stop, value.step)))
        if not _is_number(value) or _is_written(value, call) or float(value) not in used[1]:
            return value
        return value + FURTHER if isinstance(value, int) else value * 1.5

    try:
        changed = replayed(program, altered, other)
    except NotRunningError:
        return
    everyone = range(program.size)
    is_given = any(
        one.shape != changed.values[slot].shape or not is_same(one.reshape(1, -1), changed.values[slot].reshape(1, -1))
        for slot in program.inputs
        if slot not in altered and (one := base.values.get(slot)) is not None and slot in changed.values
    )
    if (is_given and used is None) or differing(program, base, changed, everyone) is not None:
        call = used[0] if used else first_call(program, base, changed, lambda one, two: not is_same(one, two))
        raise CrossSampleLeakError(
            "a number that collate_fn makes of the whole batch changes the losses of its examples, their gradients, "
            "or what the model is given for them",
            where="" if call is None else str(call),
            cure=CURE,
        )


def _made_of_them(numbers: Sequence[float]) -> list[float]:
    """Return them, and simple functions of them that cut and divide."""
    found: dict[float, None] = {}
    for number in numbers:
        for value in (number, number - 1, number + 1, number // 2, number // 2 + 1, 2 * number, number - 2, -number):
            if value not in (-1, 0, 1):
                found[value] = None
        if number:
            found[1 / number] = None
    return list(found)


def _with_numbers(program: Program, numbers: Sequence[float]) -> Iterator[Made]:
    """Yield the calls that take one of these numbers, which does not stand in their code."""
    for call in program.calls[: program.last]:
        given = choosing_numbers(call.name, call.args, call.kwargs)
        if any(number in numbers and not _is_written(number, call) for number in given):
            yield call


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_written(number: Any, call: Made) -> bool:
    return any(_is_number(part) and part == number for part in call.place.numbers)
