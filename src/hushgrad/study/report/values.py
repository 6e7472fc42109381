"""Values of a report: when two are equal, and how they become JSON."""

from __future__ import annotations

import math
from typing import Any

RELATIVE_DIFFERENCE = 1e-6


def same(left: Any, right: Any) -> bool:
    """Are two values the same, numbers to six digits? "inf" is infinity."""
    if isinstance(left, dict) and isinstance(right, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list) and isinstance(right, list):
        return len(left) == len(right) and all(map(same, left, right))
    if isinstance(left, bool) or isinstance(right, bool):
        return left is right
    numbers = [math.inf if value == "inf" else value for value in (left, right)]
    if all(isinstance(value, int | float) for value in numbers):
        return numbers[0] == numbers[1] or math.isclose(*numbers, rel_tol=RELATIVE_DIFFERENCE, abs_tol=1e-12)
    return bool(left == right)


def finite(value: Any) -> Any:
    """Return JSON values: infinity and NaN as strings, tuples as lists."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: finite(inner) for key, inner in value.items()}
    return [finite(inner) for inner in value] if isinstance(value, list | tuple) else value


def stated_epsilon(value: Any) -> float:
    """Return the ε that a file states; infinity for "inf" and for anything that is not a number >= 0."""
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value) or value < 0:
        return math.inf
    return float(value)
