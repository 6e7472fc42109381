"""Buffered strategies (BLT): coefficients that are a sum of a few geometric series, with one buffer for each.

Buffered linear Toeplitz operators (Dvijotham et al. 2024, arXiv:2404.16706; McMahan et al. 2024, arXiv:2408.08868):
c_0 = 1 and c_t = Σ_i ω_i·θ_i^(t−1). The inverse is one, too, so all sums have closed forms.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import numpy as np

from hushgrad.arguments import real_number, whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.strategy import Memory, Strategy, Vector, hexadecimal

_CLOSEST = 1e-6
"""Decays, of C or of its inverse, that are closer to one another would cancel in the closed forms."""


@dataclass(frozen=True)
class BufferedStrategy(Strategy):
    """A strategy of geometric series: noise depends on that of all earlier steps, by one buffer for each series.

    Attributes:
        decays: θ, in (0, 1), all different.
        weights: ω > 0, as many; together at most 1, so that coefficients do not rise.

    Raises `InvalidArgumentError` for other numbers.
    """

    decays: tuple[float, ...]
    weights: tuple[float, ...]

    def __post_init__(self) -> None:
        for name in ("decays", "weights"):
            given = getattr(self, name)
            if isinstance(given, str) or not isinstance(given, Sequence | np.ndarray) or not len(given):
                raise InvalidArgumentError(
                    f"must be a sequence of numbers, got {type(given).__name__}", where=name, cure="Pass a tuple"
                )
            values = tuple(real_number(f"{name}[{place}]", value) for place, value in enumerate(given))
            object.__setattr__(self, name, values)
        ordered = sorted(self.decays)
        gaps = [other - one for one, other in pairwise(ordered)]
        if not (
            len(self.decays) == len(self.weights)
            and ordered[0] > 0
            and ordered[-1] < 1
            and min(gaps, default=1.0) >= _CLOSEST
            and min(self.weights) > 0
            and math.fsum(self.weights) <= 1
        ):
            raise InvalidArgumentError(
                "decays must lie between 0 and 1 and differ by 1e-6, and as many weights must be above 0 and add up to "
                "at most 1: the sensitivity is known for those",
                where="BufferedStrategy",
                cure="Take optimal_buffered(steps, min_separation)",
            )

    @property
    def bands(self) -> None:
        """None: no coefficient is 0."""
        return

    def coefficients(self, steps: int) -> Vector:
        """Return 1 and the sum of the series."""
        t = np.arange(whole_number("steps", steps, minimum=1) - 1)
        series = [weight * decay**t for decay, weight in zip(self.decays, self.weights, strict=True)]
        return np.concatenate([[1.0], np.sum(series, axis=0)])

    def sensitivity_squared(self, steps: int, min_separation: int) -> float:
        """Return the squared norm of the sum of columns 0, b, 2b, … for b = `min_separation`, segment by segment."""
        n, apart = whole_number("steps", steps, minimum=1), whole_number("min_separation", min_separation, minimum=1)
        decays, weights = np.array(self.decays), np.array(self.weights)
        products = np.outer(decays, decays)
        buffers, total = np.zeros(len(decays)), 0.0
        for start in range(0, n, apart):
            length = min(apart, n - start)
            total += (1 + float(weights @ buffers)) ** 2
            buffers = decays * buffers + 1
            loads = weights * buffers
            total += float(loads @ _powers(products, length - 1) @ loads)
            buffers = buffers * decays ** (length - 1)
        return total

    def mean_error(self, steps: int) -> float:
        """Return the mean over t of Σ_{j≤t} b_j², in closed form: b_j = Σ_i ρ_i·x_i^j.

        x are 1 and the decays of C⁻¹, the eigenvalues of diag(θ) − 1·ωᵀ.
        """
        n = whole_number("steps", steps, minimum=1)
        decays, weights = np.array(self.decays), np.array(self.weights)
        inverse = np.linalg.eigvals(np.diag(decays) - np.outer(np.ones(len(decays)), weights)).real
        x = np.concatenate([[1.0], inverse])
        apart = np.abs(x[:, None] - x) + np.eye(len(x))
        if apart.min() < _CLOSEST**2:
            return math.inf
        differences = x[:, None] - x + np.eye(len(x))
        rho = np.prod(x[:, None] - decays, axis=1) / np.prod(differences, axis=1)
        return float(rho @ _falling_powers(np.outer(x, x), n) @ rho) / n

    def memory(self) -> Memory:
        """Return the memory of a series: one buffer for each geometric series."""
        return _BufferedMemory(self.decays, self.weights)

    def describe(self) -> str:
        """Return the number of buffers, the decays and the weights."""
        return (
            f"BufferedStrategy of {len(self.decays)} buffers: decays {hexadecimal(self.decays)}; weights "
            f"{hexadecimal(self.weights)}"
        )


class _BufferedMemory:
    """u_i ← θ_i·u_i + x_t behind each step, and z_t = x_t + Σ_i ω_i·u_i."""

    def __init__(self, decays: tuple[float, ...], weights: tuple[float, ...]) -> None:
        self._decays, self._weights = decays, weights
        self._buffers: list[Any] = []

    def correlated(self, fresh: Any) -> Any:
        for weight, buffer in zip(self._weights, self._buffers, strict=False):
            fresh.add_(buffer, alpha=-weight)
        self._follow(fresh)
        return fresh

    def whitened(self, noise: Any) -> Any:
        found = noise.clone()
        for weight, buffer in zip(self._weights, self._buffers, strict=False):
            found.add_(buffer, alpha=weight)
        self._follow(noise)
        return found

    def _follow(self, noise: Any) -> None:
        if not self._buffers:
            self._buffers = [noise.clone() for _ in self._decays]
            return
        for decay, buffer in zip(self._decays, self._buffers, strict=True):
            buffer.mul_(decay).add_(noise)


def _powers(x: Vector, count: int) -> Vector:
    """Return Σ_{t<count} x^t for |x| <= 1."""
    u = 1 - x
    is_small = np.abs(u) * count < 1e-4
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = np.where(x > 0, -np.expm1(count * np.log(np.abs(x))), 1 - x**count) / u
    near = count - count * (count - 1) / 2 * u + count * (count - 1) * (count - 2) / 6 * u**2
    return np.where(is_small, near, exact)


def _falling_powers(x: Vector, count: int) -> Vector:
    """Return Σ_{t<count} (count − t)·x^t for |x| <= 1."""
    u, n = 1 - x, float(count)
    with np.errstate(divide="ignore", invalid="ignore"):
        exact = (n - x * _powers(x, count)) / u
    near = n * (n + 1) / 2 - (n - 1) * n * (n + 1) / 6 * u + (n - 2) * (n - 1) * n * (n + 1) / 24 * u**2
    return np.where(np.abs(u) * n < 1e-4, near, exact)
