"""Sums of the likelihood ratios of single releases, enclosed between two measures.

With x the released sums of a pass along the record's gradient in units of the clip norm, one for each of its t batches:

    with the record     P = mean over j of N(e_j, σ²I)
    without it          Q = N(0, σ²I)
    likelihood ratio    S = dP/dQ = (Y_1 + … + Y_t)/t,    log Y_j = (2x_j − 1)/(2σ²)

Under Q the Y_j are independent log-normals of mean 1. Both hockey-stick divergences are means of convex functions of S,

    δ(ε) = E_Q (S − e^ε)_+   (remove),      δ(ε) = E_Q (1 − e^ε S)_+   (add),

and so are those of several passes together, in the S of each of them. So whatever spreads a Y_j without moving its mean
raises δ(ε), at every ε, in both directions and under every composition (Blackwell's order), and whatever gathers it to
its mean lowers δ(ε). On a grid with the relative interval h either costs a variance of some h²/6, where rounding all
values up or down would cost h/2:

- `Spread` lives on grid points: what lies between two of them is split so that its mean is kept ("connect the dots",
  Doroshenko et al., 2022, arXiv:2207.04380), and what lies above the last one between that and infinity;
- `Gathered` has one point for each cell of the grid, at the mean of what lies in it.

Rounding: all that is added up is positive, so no digit is lost in the tails. Masses carry a bound on their relative
error (`slack`) and values one on theirs (`drift`); where a mean is kept by a difference, its error is added to both
ends. What is shown of a computed measure is that the mean of every convex function f >= 0 under the true one is at most
(at least) that under the computed one, times 1 + slack (1 − slack) and with values moved by drift; so errors of earlier
sums enter as factors only. `scipy.special.ndtr` is taken to be right to a relative 1e-13: a model, not a proof.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Self, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

Array: TypeAlias = npt.NDArray[np.float64]
Places: TypeAlias = npt.NDArray[np.intp]

POINTS_OF_A_DEVIATION = 36.0
"""Of a grid, to one standard deviation of the logarithm of what lies on it."""

FINE_DEVIATIONS = 7.0
"""How many standard deviations to either side a grid is as fine as that."""

MOST_PLACES = 1 << 17

EPS = 2.0**-52
NORMAL = 1e-13
"""The relative error that the normal distribution function, and the place of a value on a grid, may have."""

LEAST = 1e-300
"""What products too small for floating point may add up to in one place."""

_ROUGHLY = 160
_PAIRS_AT_ONCE = 1 << 18


@dataclass(frozen=True, slots=True, eq=False)
class Ratio(ABC):
    """A sum of independent likelihood ratios: its `values` >= 0, increasing, with their probabilities under Q.

    `slack` bounds the relative error of the `masses`, `drift` that of the values.
    """

    values: Array
    masses: Array
    slack: float
    drift: float

    @classmethod
    @abstractmethod
    def of_one(cls, noise_multiplier: float, tail: float) -> Self:
        """Return Y_1; of either distribution about `tail` lies outside of its grid."""

    @abstractmethod
    def plus(self, other: Self, tail: float) -> Self:
        """Return the sum with an independent one; about a part `tail` of its mean lies outside of its grid."""


def sum_of(kind: type[Ratio], noise_multiplier: float, count: int, tail: float) -> Ratio:
    """Return Y_1 + … + Y_count, by doubling."""
    power: Ratio = kind.of_one(noise_multiplier, tail / count)
    total: Ratio | None = None
    while True:
        if count & 1:
            total = power if total is None else total.plus(power, tail)
        count >>= 1
        if not count:
            assert total is not None
            return total
        power = power.plus(power, tail)


@dataclass(frozen=True, slots=True, eq=False)
class Grid:
    """Increasing `points`, a part of those of a lattice in the logarithm with the interval `interval`.

    `cells[i]` is how many of them are among the first i + 1 places of the lattice, and `cells[-1]` is 0.
    """

    points: Array
    interval: float
    cells: Places

    def cell_of(self, values: Array) -> Places:
        """Return i for a value in [points[i − 1], points[i]): 0 below all, len(points) above; rounding may be off."""
        place = np.log(np.maximum(values, 1e-320))
        place -= math.log(self.points[0])
        place *= 1 / self.interval
        np.clip(place, -1, len(self.cells) - 2, out=place)
        found: Places = self.cells[np.floor(place).astype(np.intp)]
        return found


def normal_cells(noise_multiplier: float, tail: float) -> tuple[Grid, Array, Array]:
    """Return a grid for Y_1, and of each cell (those below and above all points included) mass and mean times mass."""
    reach = math.sqrt(-2 * math.log(tail))
    mu = 1 / noise_multiplier
    count = math.ceil((2 * reach + mu) * POINTS_OF_A_DEVIATION)
    z = np.linspace(-reach, mu + reach, count + 1)
    grid = Grid(np.exp(mu * (z - mu / 2)), mu * (2 * reach + mu) / count, np.append(np.arange(1, count + 2), 0))
    return grid, cell_masses(z), cell_masses(z - mu)


def error_of_cells(points: float) -> float:
    """Return the relative error of the masses of cells of 1/`points` standard deviations, 1/36 at most.

    The mass of a cell is a difference of values of the distribution function, each at most 1.26 times the density there
    (Mills' ratio), which up to 40 standard deviations out falls by less than a factor 3.1 from end to end.
    """
    return NORMAL * (4 + 2 * 1.26 * 3.1 * points)


def cell_masses(z: Array) -> Array:
    """Return the standard normal's mass below z[0], between neighbours and above z[-1]; z: [n] increasing, [n + 1]."""
    below, above = ndtr(z), ndtr(-z)
    # Each difference on the side where the numbers are small keeps relative precision in both tails.
    inner = np.where(z[:-1] > 0, above[:-1] - above[1:], below[1:] - below[:-1])
    return np.concatenate((below[:1], np.maximum(inner, 0), above[-1:]))


def grid_of_sum(one: Ratio, other: Ratio, tail: float) -> Grid:
    """Return a grid for the sum of two, from a rough picture of it: what it misses is not lost, only not sharp."""
    (a, p), (b, q) = _rough(one), _rough(other)
    values, masses = np.add.outer(a, b).ravel(), np.outer(p, q).ravel()
    order = np.argsort(values)
    values, masses = values[order], masses[order]
    logs = np.log(np.maximum(values, values[-1] * 1e-300))
    total = masses.sum()
    mean = float(masses @ logs) / total
    deviation = math.sqrt(float(masses @ (logs - mean) ** 2) / total)
    moments = masses * values
    low = int(np.searchsorted(np.cumsum(masses), tail * total, side="right"))
    high = len(values) - 1 - int(np.searchsorted(np.cumsum(moments[::-1]), tail * moments.sum(), side="right"))
    first, last = float(logs[min(low, high)]) - deviation / 2, float(logs[high]) + deviation / 2
    # As fine as that within some deviations, and then ever coarser: tails are long, and flat in the logarithm.
    interval, width = deviation / POINTS_OF_A_DEVIATION, FINE_DEVIATIONS * deviation
    interval = max(interval, (last - first) / MOST_PLACES)
    ends = np.arcsinh((np.array([first, last]) - mean) / width) * width / interval
    places = np.sinh(np.arange(math.floor(ends[0]), math.ceil(ends[1]) + 1) * interval / width) * width + mean
    count = math.ceil((last - first) / interval)
    chosen = np.unique(np.clip(np.rint((places - first) / interval).astype(np.intp), 0, count))
    cells = np.searchsorted(chosen, np.arange(count + 1), side="right")
    return Grid(np.exp(first + interval * chosen), interval, np.append(cells, 0))


def _rough(ratio: Ratio) -> tuple[Array, Array]:
    """Return few points that stand for all of `ratio`."""
    starts = np.arange(0, len(ratio.values), max(1, len(ratio.values) // _ROUGHLY))
    masses = np.add.reduceat(ratio.masses, starts)
    moments = np.add.reduceat(ratio.masses * ratio.values, starts)
    live = masses > 0
    return moments[live] / masses[live], masses[live]


def pairs(one: Ratio, other: Ratio) -> Iterator[tuple[Array, Array]]:
    """Yield the sums of pairs of values and their masses, in blocks; of a ratio with itself each unequal pair once."""
    start = 0
    while start < len(one.values):
        first = start if one is other else 0  # what lies before is the other half of an earlier block
        rows = max(1, _PAIRS_AT_ONCE // (len(other.values) - first))
        end = start + rows
        masses = other.masses[first:]
        if one is other:
            masses = np.concatenate((masses[:rows], 2 * masses[rows:]))
        yield (
            np.add.outer(one.values[start:end], other.values[first:]).ravel(),
            np.outer(one.masses[start:end], masses).ravel(),
        )
        start = end


def slack_of_sum(one: Ratio, other: Ratio) -> float:
    """Return a bound on the relative error of the masses of a sum: those of its parts, and of adding all pairs up."""
    return (one.slack + other.slack + EPS * (len(one.values) * len(other.values) + 4)) * (1 + 1e-6)


def drift_of_sum(one: Ratio, other: Ratio) -> float:
    """Return a bound on the relative error of the values of a sum."""
    return (max(one.drift, other.drift) + NORMAL) * (1 + 1e-6)
