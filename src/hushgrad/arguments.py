"""Checks of arguments that several modules need, each with one wording."""

from __future__ import annotations

import math
import numbers
from typing import Any

from hushgrad.errors import InvalidArgumentError


def real_number(name: str, value: Any) -> float:
    """Return `value` as a float, or refuse what is not a finite real number (bool, str and complex included)."""
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidArgumentError(f"{name} must be a real number, got {type(value).__name__}")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise InvalidArgumentError(f"{name} must be finite, got {number}")
    return number


def positive_number(name: str, value: Any) -> float:
    """Return `value` as a float greater than 0."""
    number = real_number(name, value)
    if number <= 0:
        raise InvalidArgumentError(f"{name} must be > 0, got {number}")
    return number


def non_negative_number(name: str, value: Any) -> float:
    """Return `value` as a float of at least 0."""
    number = real_number(name, value)
    if number < 0:
        raise InvalidArgumentError(f"{name} must be >= 0, got {number}")
    return number


def open_unit_interval(name: str, value: Any, hint: str = "") -> float:
    """Return `value` as a float strictly between 0 and 1."""
    number = real_number(name, value)
    if not 0 < number < 1:
        raise InvalidArgumentError(f"{name} must be in (0, 1), got {number}" + (f"; {hint}" if hint else ""))
    return number


def probability(name: str, value: Any) -> float:
    """Return `value` as a float in (0, 1]."""
    number = real_number(name, value)
    if not 0 < number <= 1:
        raise InvalidArgumentError(f"{name} must be in (0, 1], got {number}")
    return number


def whole_number(name: str, value: Any, *, minimum: int) -> int:
    """Return `value` as an int of at least `minimum`; bools and floats are refused."""
    if isinstance(value, bool) or not isinstance(value, numbers.Integral):
        raise InvalidArgumentError(f"{name} must be a whole number, got {type(value).__name__}")
    number = int(value)
    if number < minimum:
        raise InvalidArgumentError(f"{name} must be >= {minimum}, got {number}")
    return number


LARGEST_COUNT = 2**53
"""The largest whole number up to which floating point holds every one: no count of steps or records is larger."""


def count_of(name: str, value: Any, *, minimum: int) -> int:
    """Return a number of steps or records, an int from `minimum` to 2^53."""
    number = whole_number(name, value, minimum=minimum)
    if number > LARGEST_COUNT:
        raise InvalidArgumentError(f"{name} must be at most 2^53, got a number of {number.bit_length()} bits")
    return number


def one_of(name: str, value: Any, choices: tuple[str, ...]) -> str:
    """Return `value` if it is one of `choices`."""
    if value not in choices:
        raise InvalidArgumentError(f"{name} must be one of {', '.join(map(repr, choices))}, got {value!r}")
    return str(value)
