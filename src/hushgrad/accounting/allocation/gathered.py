"""The lower side: likelihood ratios gathered to the means of the cells of a grid."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Self

import numpy as np

from hushgrad.accounting.allocation.ratio import (
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
class Gathered(Ratio):
    """Values at the means of cells.

    Guarantee: every mean of a convex function is at most the true one.

    (Once masses are lowered by `slack`, and values moved by `drift` to the side that makes it smaller.)
    """

    @classmethod
    def of_one(cls, noise_multiplier: float, tail: float) -> Self:
        """Return Y_1: each cell at its mean."""
        _, mass, moment = normal_cells(noise_multiplier, tail)
        error = error_of_cells(POINTS_OF_A_DEVIATION)
        return cls(*_means(mass, moment), error, 2 * error)

    def plus(self, other: Self, tail: float) -> Self:
        """Return the sum; what lies in one cell is gathered to its mean."""
        grid = grid_of_sum(self, other, tail)
        cells = len(grid.points) + 1
        mass, moment = np.zeros(cells), np.zeros(cells)
        for values, masses in pairs(self, other):
            cell = grid.cell_of(values)
            mass += np.bincount(cell, masses, cells)
            moment += np.bincount(cell, masses * values, cells)
        slack = slack_of_sum(self, other)
        # A mean is of pairs whose masses round apart from each other.
        rounding = slack - self.slack - other.slack
        return type(self)(*_means(mass, moment), slack, drift_of_sum(self, other) + 2 * rounding)


def _means(mass: Array, moment: Array) -> tuple[Array, Array]:
    """Return the means and masses of the cells that hold anything; without the rest δ is only lower."""
    live = (mass > 1e-290) & (moment > 1e-290)
    return moment[live] / mass[live], mass[live]
