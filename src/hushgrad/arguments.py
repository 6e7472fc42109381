"""Checks of arguments that several modules need, each with one wording: the argument, what it must be, what came."""

from __future__ import annotations

import math
import numbers
from typing import Any

from hushgrad.errors import InvalidArgumentError


def real_number(name: str, value: Any) -> float:
    """Return `value` as a float, or refuse what is not a finite real number (bool, str and complex included)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise _refused(name, f"must be a real number, got {type(value).__name__}", "Pass an int or a float")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise _refused(name, f"must be finite, got {number}", "Pass a finite number")
    return number


def positive_number(name: str, value: Any) -> float:
    """Return `value` as a float greater than 0."""
    number = real_number(name, value)
    if number <= 0:
        raise _refused(name, f"must be > 0, got {number}", "Pass a number greater than 0")
    return number


SMALLEST_CLIP_NORM = 1e-20
"""Sums are handed out in float32, whose smallest numbers are near 1e-38: a norm may be spread over many of them."""


def clip_norm(name: str, value: Any) -> float:
    """Return `value`, a clip norm, as a float that float32 can hold spread over all values of a gradient."""
    number = positive_number(name, value)
    if number < SMALLEST_CLIP_NORM:
        raise _refused(
            name,
            f"must be at least {SMALLEST_CLIP_NORM:g}, got {number}: float32 cannot hold gradients so small",
            "Multiply the losses by a constant, and the clip norm by the same",
        )
    return number


def non_negative_number(name: str, value: Any) -> float:
    """Return `value` as a float of at least 0."""
    number = real_number(name, value)
    if number < 0:
        raise _refused(name, f"must be >= 0, got {number}", "Pass 0 or a greater number")
    return number


def at_least(name: str, value: Any, least: float, cure: str) -> float:
    """Return `value` as a float of at least `least`. `cure` says which one to pass."""
    number = real_number(name, value)
    if number < least:
        raise _refused(name, f"must be at least {least:g}, got {number}", cure)
    return number


def open_unit_interval(name: str, value: Any, cure: str = "Pass a number between 0 and 1") -> float:
    """Return `value` as a float strictly between 0 and 1. `cure` says which one to pass."""
    number = real_number(name, value)
    if not 0 < number < 1:
        raise _refused(name, f"must be in (0, 1), got {number}", cure)
    return number


def probability(name: str, value: Any) -> float:
    """Return `value` as a float in (0, 1]."""
    number = real_number(name, value)
    if not 0 < number <= 1:
        raise _refused(name, f"must be in (0, 1], got {number}", "Pass a number greater than 0 and at most 1")
    return number


def whole_number(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`; bools and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise _refused(name, f"must be a whole number, got {type(value).__name__}", "Pass an int")
    number = int(value)
    if number < minimum:
        raise _refused(name, f"must be >= {minimum}, got {number}", f"Pass {minimum} or a greater whole number")
    return number


LARGEST_COUNT = 2**53
"""Floating point holds every whole number up to this one: no count of steps or examples is larger."""


def count_of(name: str, value: Any, *, minimum: int) -> int:
    """Return a number of steps or examples, an int from `minimum` to 2^53."""
    number = whole_number(name, value, minimum=minimum)
    if number > LARGEST_COUNT:
        what = f"must be at most 2^53, got a number of {number.bit_length()} bits"
        raise _refused(name, what, "Pass a smaller whole number")
    return number


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        got = repr(value) if isinstance(value, str) else type(value).__name__
        what = f"must be one of {', '.join(map(repr, choices))}, got {got}"
        raise _refused(name, what, "Pass one of these names")
    return str(value)


def _refused(name: str, what: str, cure: str) -> InvalidArgumentError:
    return InvalidArgumentError(what, where=name, cure=cure)
