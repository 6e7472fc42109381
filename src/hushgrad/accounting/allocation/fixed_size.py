"""The privacy loss of one step over a fixed number of records, drawn without replacement, from above, as atoms.

Under replace-one, with q the part of the records that is drawn, σ the noise multiplier over 2C and x the released sum
along the difference of the two records' gradients in units of it, the pair is that of Zhu, Dong & Wang (2022,
arXiv:2106.08567, theorem 11): of P = (1−q)·N(0, σ²) + q·N(1, σ²) against Q = N(0, σ²) the outcomes x > 1/2, whose ratio
r = 1 − q + q·Y, log Y = (2x − 1)/(2σ²), is above 1; their mirror image, as either data set may be the first; and no
loss for the rest of the probability. Y is spread to grid points as in `hushgrad.accounting.allocation.ratio`, which
raises δ(ε) at every ε and under every composition, in the mirror image too.
"""

from __future__ import annotations

import math
from functools import lru_cache

import numpy as np

from hushgrad.accounting.allocation.ratio import EPS, NORMAL, cell_masses, error_of_cells
from hushgrad.accounting.saddle_point.atoms import Atoms

_POINTS = 50.0  # to one standard deviation of x, and to a factor e of Y


@lru_cache(maxsize=64)
def fixed_size_losses(rate: float, noise_multiplier: float, tail: float) -> Atoms:
    """Return the losses of a step, alike in both directions.

    Guarantee: δ(ε), also of a composition with it, is at least that of the step, at every ε >= 0.

    `rate` in (0, 1), `noise_multiplier` > 0 over the sensitivity 2C; about the part `tail` counts as lost.
    """
    mu, reach = 1 / noise_multiplier, math.sqrt(-2 * math.log(tail))
    count = math.ceil((reach + mu / 2) * max(1.0, mu) * _POINTS)
    error = error_of_cells(count / (reach + mu / 2))
    z = np.linspace(mu / 2, mu + reach, count + 1)
    y = np.exp(mu * (z - mu / 2))
    mass, moment = cell_masses(z)[1:], cell_masses(z - mu)[1:]  # of Y >= 1 under Q, and times Y
    inside, means = mass[:-1], moment[:-1]
    spare = 2 * error * (inside + means / y[:-1]) / (mu * (z[1] - z[0]))
    upper = np.clip((means - y[:-1] * inside) / np.diff(y), 0, inside)
    without = np.zeros(count + 1)  # under Q, on the points
    without[1:] += upper + spare
    without[:-1] += inside - upper + spare
    without[-1] += mass[-1]
    beyond = rate * (max(float(moment[-1] - y[-1] * mass[-1]), 0.0) + 4 * NORMAL * float(moment[-1]))
    loss = np.log1p(rate * (y - 1)) * (1 + 4 * EPS)
    given = without * (1 + rate * (y - 1))
    nothing = (1 - rate) * (1 - 2 * float(mass.sum())) + 4 * NORMAL
    losses = np.concatenate((-loss[::-1], [0.0], loss))
    weights = np.concatenate((without[::-1], [nothing], given)) * (1 + error)
    live = weights > 0
    return Atoms(losses[live], np.log(weights[live]), beyond)
