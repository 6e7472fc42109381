"""Is an argument of a call made of a number that left torch before? Told by its value.

Once a number is Python's own, nothing shows what it is used for. A number of a loss's program that equals a simple
function of it, with the constants of the code around, is taken to be made of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from typing import Any

from torch import Size

CLOSE = 1e-9
"""Relative to the number: two doubles are not so near to each other by chance."""

CLOSE_OF_SINGLE = 1e-6
"""The same where it was computed in single precision."""

MOST_NUMBERS = 8
MOST_CONSTANTS = 12
SMALL = (1e-4, 1e-5, 1e-6, 1e-7, 1e-8, 1e-10, 1e-12)


def is_made_of(taken: Any, args: Any, kwargs: Any, constants: Iterable[Any]) -> bool:
    """Return whether one of the numbers among arguments is a function of `taken`, a number or nested numbers."""
    return bool(made_of(taken, (args, kwargs), constants))


def made_of(taken: Any, given: Any, constants: Iterable[Any]) -> list[float]:
    """Return the numbers among those given that are a function of `taken`, a number or nested numbers."""
    written = {float(part) for part in constants if _is_finite(part)}
    used = [number for number in numbers_in(given) if not _is_plain(number) and number not in written]
    if not used:
        return []
    known = [*sorted(written)[:MOST_CONSTANTS], *SMALL]
    values = [value for start in _starts(taken) for value in _made(start, known)]
    return [number for number in used if any(_is_near(number, value) for value in values)]


def is_one_of(taken: Any, given: Iterable[float], constants: Iterable[Any]) -> bool:
    """Return whether a number among those given is `taken`, or a usual statistic of it: in the precision of float32."""
    written = {float(part) for part in constants if _is_finite(part)}
    used = [number for number in given if not _is_plain(number) and number not in written]
    numbers = list(numbers_in(taken))
    if not used or not numbers:
        return False
    return any(abs(number - value) <= CLOSE_OF_SINGLE * abs(value) for value in _statistics(numbers) for number in used)


def is_free(given: Iterable[float], size: int, constants: Iterable[Any]) -> bool:
    """Return whether a number among those given is not usual, not the batch's `size`, and not written in the code."""
    written = {float(part) for part in constants if _is_finite(part)}
    return any(not _is_plain(number) and number != size and number not in written for number in given)


def _statistics(numbers: list[float]) -> Iterator[float]:
    if len(numbers) == 1:
        value = numbers[0]
        yield from (value, -value)
        if not value.is_integer():
            yield from _functions(value)
        return
    total, squares = math.fsum(numbers), math.fsum(number * number for number in numbers)
    count, mean = len(numbers), total / len(numbers)
    spread = max(0.0, squares / count - mean * mean)
    yield from (total, mean, max(numbers), min(numbers), math.sqrt(squares), math.sqrt(squares / count))
    yield from (spread, math.sqrt(spread), math.sqrt(spread * count / (count - 1)))


def _starts(taken: Any) -> Iterator[float]:
    """Yield what a number, or a list of them, is likely to be used as."""
    if isinstance(taken, Size):
        yield from (float(length) for length in taken if length > 1)
        return
    numbers = list(numbers_in(taken))
    yield from numbers[:MOST_NUMBERS]
    if len(numbers) > 1:
        total = math.fsum(numbers)
        yield from (total, total / len(numbers), max(numbers), min(numbers))


def _made(start: float, constants: list[float]) -> Iterator[float]:
    """Yield simple functions of a number; of a whole one only those that are not met by chance."""
    for value in _functions(start):
        yield value
        if float(start).is_integer():
            continue
        for one in constants:
            for between in _joined(value, one):
                yield between
                if between:
                    yield 1 / between
                for other in constants:
                    yield from _joined(between, other)
    if float(start).is_integer():
        for one in (*SMALL, 1.0):
            yield start + one


def _functions(value: float) -> Iterator[float]:
    yield from (value, -value)
    if value:
        yield 1 / value
    if value > 0:
        yield from (math.sqrt(value), 1 / math.sqrt(value), math.log(value), math.log1p(value), value * value)
    if abs(value) < 50:
        yield from (math.exp(value), math.exp(-value), math.tanh(value), 1 / (1 + math.exp(-value)))


def _joined(value: float, constant: float) -> Iterator[float]:
    yield from (value + constant, value - constant, constant - value, value * constant)
    if constant:
        yield value / constant
    if value:
        yield constant / value


def numbers_in(value: Any) -> Iterator[float]:
    """Yield the numbers among nested values, arrays included."""
    if isinstance(value, (bool, str, bytes)) or value is None:
        return
    if isinstance(value, (int, float)):
        if _is_finite(value):
            yield float(value)
    elif isinstance(value, dict):
        for part in value.values():
            yield from numbers_in(part)
    elif type(value) in (tuple, list, Size):  # and no slot, which is a number by name only
        for part in value:
            yield from numbers_in(part)
    elif hasattr(value, "tolist"):
        yield from numbers_in(value.tolist())


def _is_finite(value: Any) -> bool:
    return not isinstance(value, bool) and isinstance(value, (int, float)) and abs(value) < 1e300


def _is_plain(number: float) -> bool:
    """Whether a number is so usual that it says nothing: axes, small powers."""
    return number in (-2, -1, 0, 0.5, 1, 2, -100)


def _is_near(one: float, other: float) -> bool:
    return abs(one - other) <= CLOSE * abs(one)
