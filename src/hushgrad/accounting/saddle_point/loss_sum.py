"""The sum of many steps' privacy losses: its cumulants, and bounds on its transform at high frequencies."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from hushgrad.accounting.composition import Sampled
from hushgrad.accounting.saddle_point.atoms import Atoms
from hushgrad.accounting.saddle_point.step_measure import (
    Array,
    SampledStep,
    StepMeasure,
    measure,
    measured,
    needed_panels,
    quadrature_error,
)

_CERTIFICATE_MARGIN = 0.8
_VARIATION_MARGIN = 1.2
_RATIO = math.sqrt(2)
_FREQUENCIES = 64
_WELL_BOUNDED = 0.5

Steps = tuple[tuple[SampledStep, int], ...]
Counted = tuple[tuple[Atoms, int], ...]


def steps_of(sampled: Iterable[Sampled], direction: str, group_size: int = 1) -> Steps:
    """Return the sampled steps `(rate, noise_multiplier, count)` in one direction."""
    return tuple((SampledStep(rate, noise, direction, group_size), count) for rate, noise, count in sampled)


@dataclass(frozen=True, slots=True)
class Cumulants:
    """K(c) = log E e^{cL} of the sum of losses, and its first two derivatives."""

    value: float
    mean: float
    variance: float


class LossSum:
    """The sum of the losses of `steps` and `atoms`, independent of each other, and of a Gaussian release.

    `precision` is that release's 1/σ². Steps leave out at most the probability `dropped` in all, and atoms what is
    infinite in them, which is added to it: δ of the sum is at most `dropped` below the true one, and never above it.
    """

    def __init__(self, steps: Steps, precision: float, dropped: float, atoms: Counted = ()) -> None:
        self.steps = steps
        self.atoms = atoms
        self.precision = precision
        self.dropped = dropped + math.fsum(count * part.infinite for part, count in atoms)
        total = sum(count for _, count in steps)
        self._per_step = dropped / max(total, 1)
        self.measures = [measure(step, self._per_step) for step, _ in steps]
        parts: list[StepMeasure | Atoms] = [*self.measures, *(part for part, _ in atoms)]
        self.counts = np.array([count for _, count in (*steps, *atoms)], dtype=float)
        if parts:
            self._losses = np.concatenate([part.losses for part in parts])
            self._log_weights = np.concatenate([part.log_weights for part in parts])
            self._sizes = np.array([len(part.losses) for part in parts])
            self._starts = np.concatenate(([0], np.cumsum(self._sizes)[:-1]))

    def cumulants(self, c: float) -> Cumulants:
        """Return K(c), K'(c), K''(c) for a real c."""
        value, mean = self.precision * c * (c + 1) / 2, self.precision * (c + 0.5)
        variance = self.precision
        if self.steps or self.atoms:
            exponent = self._log_weights + c * self._losses
            peaks = np.maximum.reduceat(exponent, self._starts)
            weights = np.exp(exponent - np.repeat(peaks, self._sizes))
            masses = np.add.reduceat(weights, self._starts)
            means = np.add.reduceat(weights * self._losses, self._starts) / masses
            squares = (
                np.add.reduceat(weights * (self._losses - np.repeat(means, self._sizes)) ** 2, self._starts) / masses
            )
            value += float(self.counts @ (peaks + np.log(masses)))
            mean += float(self.counts @ means)
            variance += float(self.counts @ squares)
        return Cumulants(value, mean, variance)

    def log_moment_at_most(self, c: float) -> float:
        """Return an upper bound on K(c): with the error of its quadrature, which is coarse."""
        errors = (quadrature_error(part, part.half_width, c, 0.0) for part in self.measures)
        excess = math.fsum(count * math.log1p(error) for error, (_, count) in zip(errors, self.steps, strict=True))
        return self.cumulants(c).value * (1 + 1e-12) + excess + 1e-9

    def resolution(self, c: float, frequency: float, tolerance: float) -> tuple[list[int], float]:
        """Return numbers of panels that are enough for |u| <= `frequency` at the tilt `c`, and Σ count · error.

        Each step's error is below `tolerance` / count or below rounding, where panels can be made as fine.
        """
        result: list[int] = []
        total, refinement = 0.0, 1.0
        for part, (_, count) in zip(self.measures, self.steps, strict=True):
            # Similar steps follow each other, and what one needed the next one needs, too.
            first = math.floor(part.panels * refinement)
            panels, error = needed_panels(part, c, frequency, max(tolerance / count, 1e-17), first)
            refinement = panels / part.panels
            result.append(panels)
            total += count * error
        return result, total

    def refined(self, panels: list[int]) -> list[tuple[StepMeasure | Atoms, int]]:
        """Return the steps' measures on these numbers of panels, and the atoms, each with its count."""
        measures = [
            part if number == part.panels else measured(step, self._per_step, number)
            for part, (step, _), number in zip(self.measures, self.steps, panels, strict=True)
        ]
        steps = [(part, count) for part, (_, count) in zip(measures, self.steps, strict=True)]
        return [*steps, *self.atoms]

    def log_decay(self, c: float, start: float, enough: float) -> tuple[Array, Array]:
        """Return frequencies a_0 = `start`, √2·a_0, ... and log bounds on |E e^{(c+iu)L}| / E e^{cL} over u >= a_j.

        Entry j of the bounds holds for u in [a_j, a_{j+1}), the last one for all u beyond. Two bounds are known for
        each step's law under the tilt, and the smaller is taken:

        - with cells of width π/(√2a): |φ|² <= 1 − (2u²/π²)·E[(ℓ − ℓ')²; both in one cell], as 1 − cos t >= 2t²/π² for
          |t| <= π (a fifth of the reduction is given away for what quadrature nodes cannot show);
        - for any x_1: |φ| <= 1 − P(x >= x_1) + V/u, where V is the variation of the density of ℓ on x >= x_1, by
          integration by parts (V is taken 1.2 times what the nodes show).

        Of atoms the first one is taken, as it stands. A Gaussian release adds the factor e^{−precision·u²/2}, exactly.
        Steps are taken in until every bound is below
        `enough` (a logarithm); those left out count as 1, which is always true.
        """
        frequencies: Array = start * _RATIO ** np.arange(_FREQUENCIES, dtype=float)
        bounds: Array = -np.minimum(self.precision * frequencies**2 / 2, 1e300)
        for index in np.argsort(-self.counts, kind="stable"):
            if bounds.max() < enough:
                break
            if index < len(self.measures):
                decay = _log_decay_of_one(self.measures[index], c, frequencies)
            else:
                decay = _log_decay_of_atoms(self.atoms[index - len(self.measures)][0], c, frequencies)
            bounds = bounds + self.counts[index] * decay
        return frequencies, bounds


def _log_decay_of_one(part: StepMeasure, c: float, frequencies: Array) -> Array:
    exponent = part.log_weights + c * part.losses
    weights = np.exp(exponent - exponent.max())
    total = weights.sum()
    weights /= total
    density = np.exp(part.log_density + c * part.losses - exponent.max()) / total / np.maximum(part.slopes, 1e-300)
    mass = np.cumsum(weights[::-1])[::-1]
    steps = np.abs(np.diff(density))
    variation = _VARIATION_MARGIN * (density + np.concatenate((np.cumsum(steps[::-1])[::-1], [0.0])) + density[-1])
    result = np.empty(len(frequencies))
    keep = mass > 1e-12
    mass, variation = mass[keep], variation[keep]
    live = weights > 1e-15
    losses, live_weights = part.losses[live], weights[live]
    by_parts = np.min((1 - mass)[:, None] + variation[:, None] / frequencies, axis=0)
    for j, a in enumerate(frequencies):
        bound = by_parts[j]
        if bound > _WELL_BOUNDED and j < len(frequencies) - 1:  # the last one must hold for all u beyond
            inside = _within_cells(losses, live_weights, math.pi / (_RATIO * a))
            bound = min(
                bound, math.sqrt(min(max(1 - _CERTIFICATE_MARGIN * (2 / math.pi**2) * a * a * inside, 0.0), 1.0))
            )
        result[j] = math.log(min(max(bound, 1e-300), 1.0))
    return result


def _log_decay_of_atoms(part: Atoms, c: float, frequencies: Array) -> Array:
    """Return the first bound of `LossSum.log_decay`; atoms on a lattice decay up to its frequency, and not beyond."""
    exponent = part.log_weights + c * part.losses
    weights = np.exp(exponent - exponent.max())
    weights /= weights.sum()
    result = np.zeros(len(frequencies))
    for j, a in enumerate(frequencies[:-1]):
        inside = _within_cells(part.losses, weights, math.pi / (_RATIO * a)) * (1 - 1e-9)
        result[j] = math.log(max(1 - (2 / math.pi**2) * a * a * inside, 1e-300)) / 2
        if inside == 0:
            break
    return result


def _within_cells(losses: Array, weights: Array, width: float) -> float:
    """Return E[(ℓ − ℓ')²; both in one cell] for cells of `width`; `losses` is monotone."""
    cell = np.floor((losses - losses[0]) / width)
    starts = np.concatenate(([0], np.nonzero(np.diff(cell))[0] + 1))
    if len(starts) == len(losses):
        return 0.0
    inside = losses - np.repeat(losses[starts], np.diff(np.concatenate((starts, [len(losses)]))))
    mass = np.add.reduceat(weights, starts)
    first = np.add.reduceat(weights * inside, starts)
    second = np.add.reduceat(weights * inside**2, starts)
    return float(np.maximum(2 * (mass * second - first**2), 0).sum())
