"""The upper side: likelihood ratios on grid points, split so that means are kept."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hushgrad.accounting.allocation.ratio import (
    EPS,
    LEAST,
    NORMAL,
    POINTS_OF_A_DEVIATION,
    Array,
    Ratio,
    drift_of_sum,
    error_of_cells,
    grid_of_sum,
    normal_cells,
    pairs,
    slack_of_sum,
)


@dataclass(frozen=True, slots=True, eq=False)
class Spread(Ratio):
    """Values on grid points and at 0, and the part of the mean that lies at infinity (`beyond`).

    Guarantee: every mean of a convex function is at least the true one.

    (Once masses and `beyond` are raised by `slack`, and values moved by `drift` to the side that makes it larger.)
    """

    beyond: float

    @classmethod
    def of_one(cls, noise_multiplier: float, tail: float) -> Self:
        """Return Y_1: the mass of each cell split between its two ends."""
        grid, mass, moment = normal_cells(noise_multiplier, tail)
        points = np.concatenate(([0.0], grid.points))
        inside, means = mass[:-1], moment[:-1]
        error = error_of_cells(POINTS_OF_A_DEVIATION)
        spare = 2 * error * (inside + means / grid.points) / min(grid.interval, 1.0)
        upper = np.clip((means - points[:-1] * inside) / np.diff(points), 0, inside)
        masses = np.zeros(len(points))
        masses[1:] += upper + spare
        masses[:-1] += inside - upper + spare
        masses[-1] += mass[-1]
        beyond = max(float(moment[-1] - points[-1] * mass[-1]), 0.0) + 4 * NORMAL * float(moment[-1])
        return cls(points, masses + LEAST, error, NORMAL, beyond)

    def plus(self, other: Self, tail: float) -> Self:
        """Return the sum; the sum of two values is split between the two grid points beside it."""
        grid = grid_of_sum(self, other, tail)
        points = np.concatenate(([0.0], grid.points))
        widths, most = np.diff(points), float(points[-1])
        spare = 8 * EPS / min(grid.interval, 1.0)
        lower, upper = np.zeros(len(points)), np.zeros(len(points))
        beyond = self.beyond * float(other.masses.sum()) + other.beyond * float(self.masses.sum())
        for values, masses in pairs(self, other):
            over = values > most
            if over.any():
                beyond += float(masses[over] @ (values[over] * (1 + 4 * EPS) - most))
                values = np.minimum(values, most)
            cell = np.minimum(grid.cell_of(values), len(points) - 2)
            part: Array = (values - points[cell]) / widths[cell]
            lower += np.bincount(cell, masses * np.clip(1 + spare - part, 0, 1), len(points))
            upper += np.bincount(cell, masses * np.clip(part + spare, 0, 1), len(points))
        lower[1:] += upper[:-1]
        return type(self)(points, lower + LEAST, slack_of_sum(self, other), drift_of_sum(self, other), beyond)
