"""Strategies as dense matrices, written apart from everything that uses them."""

from __future__ import annotations

import itertools

import numpy as np

from hushgrad.strategies.strategy import Strategy


def dense(strategy: Strategy, steps: int) -> np.ndarray:
    """Return C."""
    c = strategy.coefficients(steps)
    return np.array([[c[row - column] if row >= column else 0.0 for column in range(steps)] for row in range(steps)])


def worst_participation(strategy: Strategy, steps: int, apart: int) -> float:
    """Return the greatest ‖C·u‖² over all patterns, by trying them."""
    matrix, best = dense(strategy, steps), 0.0
    for pattern in itertools.product((0, 1), repeat=steps):
        places = [place for place, taken in enumerate(pattern) if taken]
        if all(b - a >= apart for a, b in itertools.pairwise(places)):
            best = max(best, float(((matrix @ np.array(pattern)) ** 2).sum()))
    return best
