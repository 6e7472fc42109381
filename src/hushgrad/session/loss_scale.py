"""By what losses are multiplied in a backward through 16 bits, so that small gradients do not vanish in float16.

Clipped sums are of gradients in at least float32, where the scale is taken off again before they are measured. An
example whose gradient overflows contributes 0, as all that are not finite do. Nothing of that comes back: a scale that
grew until gradients overflow, and steps that are left out because they did, would follow single records.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from hushgrad.accounting.conditions import LOSS_SCALE, Condition
from hushgrad.errors import InvalidArgumentError

LARGEST = 2.0**15
"""The largest power of two that float16 holds."""

CURE = (
    "Pass a power of two from 1 to 2**15, for instance 2.0**10: losses are not divided by the batch size here, so it "
    "may be smaller than a GradScaler's by that factor. Or a function of the number of steps taken that returns one"
)

Scale = float | Callable[[int], float]


class LossScale:
    """A public constant, or a public function of the number of steps that were charged.

    Guarantee: a power of two, so that it changes no rounding but what overflows and what vanishes.

    Raises:
        InvalidArgumentError: something else, also when a function returns it.
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        self._function = scale if callable(scale) else None
        self._value = 1.0 if callable(scale) else _required(scale)
        self._step = -1

    def at(self, steps: int) -> float:
        """Return the scale after so many steps; a function is asked once for each number."""
        if self._function is not None and steps != self._step:
            self._value = _required(self._function(steps))
            self._step = steps
        return self._value

    @property
    def is_constant(self) -> bool:
        """Whether it is the same in all steps."""
        return self._function is None

    @property
    def conditions(self) -> list[Condition]:
        """What is on trust: what a function looks at."""
        return [] if self._function is None else [LOSS_SCALE]


def _required(scale: object) -> float:
    is_number = isinstance(scale, (int, float)) and not isinstance(scale, bool)
    value = float(scale) if isinstance(scale, (int, float)) and is_number else math.nan
    if not 1 <= value <= LARGEST or math.frexp(value)[0] != 0.5:
        raise InvalidArgumentError("loss_scale must be a power of two from 1 to 2**15", cure=CURE)
    return value
