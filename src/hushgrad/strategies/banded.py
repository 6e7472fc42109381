"""Banded strategies (BandMF): noise that is independent of that of `bands` steps before and earlier."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hushgrad.arguments import real_number, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.strategy import Memory, Strategy, Vector, hexadecimal

_SETTLED = 1e-13
"""Where prefix sums of an inverse differ from their limit by less, relative, all later ones are taken for it."""

_ENDLESS = 1e6
"""Where they are so many times their limit, the inverse has no end."""


@dataclass(frozen=True)
class BandedStrategy(Strategy):
    """A strategy with finitely many coefficients, scaled so that every column has a norm of at most 1.

    A record whose participations lie at least `bands` steps apart meets columns that have no row in common, so each of
    them costs what a step with independent noise does (Choquette-Choo et al. 2023, arXiv:2306.08153, theorem 4).

    Attributes:
        values: c_0, c_1, …, non-negative and non-increasing; they are divided by their norm.

    Guarantee: no column of any prefix has a norm above 1, those of the last steps included.

    Raises `InvalidArgumentError` for other numbers.
    """

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if isinstance(self.values, str) or not isinstance(self.values, Sequence | np.ndarray) or not len(self.values):
            raise InvalidArgumentError(
                f"must be a sequence of numbers, got {type(self.values).__name__}",
                where="values",
                cure="Pass the coefficients of optimal_banded(steps, bands), say",
            )
        values = [real_number(f"values[{place}]", value) for place, value in enumerate(self.values)]
        is_falling = all(one >= other for one, other in pairwise(values))
        if not (values[0] > 0 and values[-1] >= 0 and is_falling):
            raise InvalidArgumentError(
                "coefficients must be >= 0, none greater than the one before, and the first above 0: the sensitivity "
                "is known for those",
                where="values",
                cure="Take optimal_banded(steps, bands)",
            )
        norm = math.sqrt(math.fsum(value * value for value in values))
        if not 1 - 1e-14 <= norm <= 1:
            values = [value / norm * (1 - 1e-15) for value in values]
        object.__setattr__(self, "values", tuple(values))

    @property
    def bands(self) -> int:
        """The number of coefficients."""
        return len(self.values)

    def coefficients(self, steps: int) -> Vector:
        """Return the coefficients, followed by zeros."""
        found = np.zeros(whole_number("steps", steps, minimum=1))
        found[: self.bands] = self.values[:steps]
        return found

    def sensitivity_squared(self, steps: int, min_separation: int) -> float:
        """Return how often a record can take part: its columns have no row in common.

        Raises `InvalidArgumentError` for participations less than `bands` steps apart.
        """
        if whole_number("min_separation", min_separation, minimum=1) < self.bands:
            raise InvalidArgumentError(
                f"participations {min_separation} steps apart share rows of a strategy of {self.bands} bands",
                where="min_separation",
                cure="Take a strategy of at most that many bands",
            )
        return float(-(-whole_number("steps", steps, minimum=1) // min_separation))

    def mean_error(self, steps: int) -> float:
        """Return the mean over t of Σ_{j≤t} b_j², b the first column of A·C⁻¹."""
        return PrefixError.of(np.array(self.values), steps).value

    def memory(self) -> Memory:
        """Return the memory of a series: the last bands − 1 releases' noise."""
        return _BandedMemory(self.values)

    def describe(self) -> str:
        """Return the number of bands and the coefficients."""
        return f"BandedStrategy of {self.bands} bands: {hexadecimal(self.values)}"


INDEPENDENT = BandedStrategy((1.0,))
"""The identity: noise that is drawn anew in every step."""


class _BandedMemory:
    """x_t = (z_t − Σ_{j≥1} c_j·x_{t−j}) / c_0, and back."""

    def __init__(self, values: tuple[float, ...]) -> None:
        self._first, self._later = values[0], values[1:]
        self._past: deque[Any] = deque(maxlen=len(self._later))  # the last one first

    def correlated(self, fresh: Any) -> Any:
        for value, past in zip(self._later, self._past, strict=False):
            fresh.add_(past, alpha=-value)
        fresh.div_(self._first)
        self._past.appendleft(fresh.clone())
        return fresh

    def whitened(self, noise: Any) -> Any:
        found = noise * self._first
        for value, past in zip(self._later, self._past, strict=False):
            found.add_(past, alpha=value)
        self._past.appendleft(noise.clone())
        return found


@dataclass(frozen=True)
class PrefixError:
    """The mean error of prefix sums under coefficients c, and what its gradient needs.

    Attributes:
        value: mean over t of Σ_{j≤t} b_j².
        gradient: of `value` by c_1, c_2, …
    """

    value: float
    gradient: Vector

    @classmethod
    def of(cls, c: Vector, steps: int, *, with_gradient: bool = False) -> PrefixError:
        """Compute it in float64, for n = `steps`.

        b solves C·b = 1 and tends to 1/Σc; ∂b/∂c_m is −e shifted by m, where C·e = b. Both are computed up to where
        they no longer change, and what is left of the sums is known in closed form.
        """
        from scipy.signal import lfilter  # on use: a ledger needs no scipy

        n, bands, limit = whole_number("steps", steps, minimum=1), len(c), 1 / float(c.sum())
        count = min(n, max(256, 8 * bands))
        while True:
            with np.errstate(over="ignore", invalid="ignore"):  # of coefficients whose inverse grows without end
                b = lfilter([1.0], c, np.ones(count))
                e = lfilter([1.0], c, b)
            if not np.isfinite(e[-1]) or abs(e[-1]) > _ENDLESS * limit**2:
                return cls(math.inf, np.full(bands - 1, math.nan))
            if count == n or (_is_settled(b[-bands:], limit) and _is_settled(e[-bands:], limit**2)):
                break
            count = min(n, 2 * count)
        weights = (n - np.arange(count)) / n
        left = (n - count) * (n - count + 1) / (2 * n)  # Σ of the weights behind `count`
        weighted = weights * b
        value = float(weighted @ b) + limit**2 * left
        if not with_gradient:
            return cls(value, np.empty(0))
        by = [-2 * (float(weighted[m:] @ e[: count - m]) + limit**3 * left) for m in range(1, bands)]
        return cls(value, np.array(by))


def _is_settled(values: Vector, limit: float) -> bool:
    return bool(np.abs(values / limit - 1).max() < _SETTLED)
