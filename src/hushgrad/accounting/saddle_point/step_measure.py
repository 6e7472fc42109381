"""The privacy loss of one sampled Gaussian step as a finite measure on quadrature nodes, with the error of that.

With x the released sum along the records' common direction in units of the clip norm, q the rate, σ the noise
multiplier and k the size of the group of records that two neighbouring data sets differ by:

    with the group     P = Σ_j Binomial(k, q)(j) · N(j, σ²)
    without it         Q = N(0, σ²)
    privacy loss       L(x) = log Σ_j Binomial(k, q)(j) · exp((2jx − j²)/(2σ²)),  increasing in x

For k = 1 this is the dominating pair of Zhu, Dong & Wang (2022, arXiv:2106.08567), for k > 1 that of Ganesh (2024,
arXiv:2401.10294). In the direction "remove" the loss is L under P, in the direction "add" it is −L under Q.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import gammaln, log_ndtr, logsumexp

Array: TypeAlias = npt.NDArray[np.float64]

REMOVE = "remove"
ADD = "add"

_POINTS = 24
_MOST_PANELS = 25_000
_BETWEEN_NODES = 20.0  # factor on a maximum that was taken over sampled points


@dataclass(frozen=True, slots=True)
class SampledStep:
    """One sampled Gaussian step: `rate` in (0, 1), `noise_multiplier` > 0, `group_size` >= 1, and the direction."""

    rate: float
    noise_multiplier: float
    direction: str
    group_size: int = 1

    def loss_of_sum(self, x: Array) -> Array:
        """Return L(x); the shape of `x`."""
        variance = self.noise_multiplier**2
        if self.group_size == 1:
            result: Array = np.logaddexp(math.log1p(-self.rate), math.log(self.rate) + (2 * x - 1) / (2 * variance))
            return result
        j = np.arange(self.group_size + 1)
        terms = self._log_binomial() + (2 * j * np.asarray(x)[..., None] - j * j) / (2 * variance)
        summed: Array = logsumexp(terms, axis=-1)
        return summed

    def slope(self, x: Array) -> Array:
        """Return dL/dx, which lies in (0, k/σ²)."""
        variance = self.noise_multiplier**2
        if self.group_size == 1:
            return _sampled_part(self, x) / variance
        j = np.arange(self.group_size + 1)
        terms = self._log_binomial() + (2 * j * np.asarray(x)[..., None] - j * j) / (2 * variance)
        terms -= terms.max(axis=-1, keepdims=True)
        weights = np.exp(terms)
        result: Array = (weights @ j) / weights.sum(axis=-1) / variance
        return result

    def _log_binomial(self) -> Array:
        k, j = self.group_size, np.arange(self.group_size + 1)
        result: Array = (
            gammaln(k + 1) - gammaln(j + 1) - gammaln(k - j + 1)
            + j * math.log(self.rate) + (k - j) * math.log1p(-self.rate)
        )  # fmt: skip
        return result

    def interval(self, dropped: float) -> tuple[float, float]:
        """Return the x outside of which lies at most the probability `dropped` under the direction's first measure."""
        return _interval(self, dropped)


@lru_cache(maxsize=4096)
def _interval(step: SampledStep, dropped: float) -> tuple[float, float]:
    noise, target = step.noise_multiplier, math.log(dropped / 2)
    reach = math.sqrt(2 * math.log(2 / dropped)) + 0.1  # Φ(−r) <= exp(−r²/2)/2
    if step.direction == ADD:
        return -reach * noise, reach * noise
    j, log_weights = np.arange(step.group_size + 1), step._log_binomial()

    def excess(x: float) -> float:
        return float(logsumexp(log_weights + log_ndtr((j - x) / noise))) - target

    high = brentq(excess, -reach * noise, step.group_size + reach * noise, xtol=1e-6 * noise)
    return -reach * noise, float(high) + 2e-6 * noise


@dataclass(frozen=True, slots=True)
class StepMeasure:
    """A step's privacy loss on nodes: node i has `losses[i]` and the probability exp(`log_weights[i]`).

    `log_density` is that of x at the nodes `x`, and `slopes` is |dL/dx| there. The nodes are those of Gauss-Legendre
    rules on equal panels of `half_width` from `first` to `last`.
    """

    step: SampledStep
    losses: Array
    log_weights: Array
    log_density: Array
    slopes: Array
    x: Array
    half_width: float
    first: float
    last: float

    @property
    def panels(self) -> int:
        """The number of panels."""
        return len(self.x) // _POINTS

    @property
    def sizes(self) -> Array:
        """How large the numbers are that a weight is computed from; rounding follows them."""
        result: Array = np.abs(self.log_density)
        return result


def quadrature_error(part: StepMeasure, half: float, tilt: float, frequency: float) -> float:
    """Return a bound on |∫ − Σ| / ∫e^{tilt·ℓ} for the integrand e^{(tilt + i·u)ℓ} and panels of half width `half`.

    It holds at every |u| <= `frequency`. `part` is the step's measure at any resolution.

    Gauss–Legendre with n points on a panel of half width H errs by at most (64/15)·H·M·ρ^{−2n}/(1 − ρ^{−2}), with M the
    maximum modulus on the ellipse of parameter ρ (Trefethen, Approximation Theory and Practice, theorem 19.3). An
    ellipse of half height y stays clear of the zeros of e^L for ky/σ² < π. On it, with b = y/σ²: the modulus of the
    Gaussian grows by at most e^{y²/(2σ²)}; that of e^L never exceeds its value on the real line, and falls below it by
    at most the factor (1 − 2p(1−p)(1−cos b))^{1/2}, where p is the weight of the sampled part (k > 1: cos(kb/2));
    that of e^{iuL} grows by at most e^{u·arg}, with arg the argument of e^L. The maximum over x is taken on
    sampled points, times 20.
    """
    step = part.step
    noise, k = step.noise_multiplier, step.group_size
    panels = round((part.last - part.first) / (2 * half))
    exponent = part.log_density + tilt * part.losses
    norm = float(logsumexp(part.log_weights + tilt * part.losses))
    edges: Array = part.first + 2 * half * np.arange(panels + 1, dtype=float)
    left, right = edges[:-1], edges[1:]
    highest = min(2.2 * noise**2 / k, 5 * noise, 2.4 * half)
    power = -tilt if step.direction == ADD else 1 + tilt
    best = math.inf
    for fraction in (0.12, 0.2, 0.28, 0.36, 0.45, 0.7, 1.0):
        y = fraction * highest
        ratio, b = y / half, y / noise**2
        rho = ratio + math.sqrt(1 + ratio * ratio)
        reach = half * (math.sqrt(1 + ratio * ratio) - 1)
        peaks = _maximum_over(part.x, exponent, left - reach, right + reach)
        if k == 1:
            p_left, p_right = _sampled_part(step, left - reach), _sampled_part(step, right + reach)
            mixed = np.where(
                (p_left < 0.5) & (p_right > 0.5), 0.25, np.maximum(p_left * (1 - p_left), p_right * (1 - p_right))
            )
            shrink = 0.5 * np.log1p(-2 * mixed * (1 - math.cos(b)))
            argument = np.arctan2(p_right * math.sin(b), 1 - p_right + p_right * math.cos(b))
        else:
            shrink = np.full(panels, math.log(math.cos(k * b / 2)))
            argument = np.full(panels, k * b)
        growth = y * y / (2 * noise**2) + frequency * argument + np.maximum(0, power * shrink)
        log_error = (
            math.log(64 / 15 * half * _BETWEEN_NODES)
            + peaks
            + growth
            - 2 * _POINTS * math.log(rho)
            - math.log1p(-(rho**-2))
        )
        best = min(best, float(logsumexp(log_error)) - norm)
    return math.exp(min(best, 700.0))


def _maximum_over(x: Array, values: Array, left: Array, right: Array) -> Array:
    """Return, for each interval, the maximum of `values` (at the increasing points `x`) inside and next to it."""
    first = np.maximum(np.searchsorted(x, left) - 1, 0)
    last = np.minimum(np.searchsorted(x, right), len(x) - 1)
    # Intervals overlap, so reduceat takes pairs of starts and ends and every second result is used.
    ends = np.minimum(last + 1, len(x) - 1)
    pairs = np.stack((first, np.maximum(ends, first + 1)), axis=1).ravel()
    pairs = np.minimum(pairs, len(x) - 1)
    result: Array = np.maximum(np.maximum.reduceat(values, pairs)[::2], values[last])
    return result


def needed_panels(part: StepMeasure, tilt: float, frequency: float, tolerance: float, first: int) -> tuple[int, float]:
    """Return how many panels make `quadrature_error` at most `tolerance`, where that is possible, and that error.

    The search begins at `first` panels, or at those that `part` has if these are more.
    """
    span = part.last - part.first
    panels, fewer, before = max(first, round(span / (2 * part.half_width))), 0, 0.0
    error = quadrature_error(part, span / (2 * panels), tilt, frequency)
    while error > tolerance and panels < _MOST_PANELS:
        # The bound's logarithm falls about linearly in that of the number of panels, the slower the more there are.
        steepness = min(max((before - math.log(error)) / math.log(panels / fewer), 15.0), 1000.0) if fewer else 1000.0
        factor = math.exp((math.log(error) - math.log(tolerance)) / steepness)
        fewer, before, panels = panels, math.log(error), math.ceil(panels * min(max(factor, 1.1), 8.0))
        error = quadrature_error(part, span / (2 * panels), tilt, frequency)
    return panels, error


def _sampled_part(step: SampledStep, x: Array) -> Array:
    log_odds = math.log(step.rate) - math.log1p(-step.rate) + (2 * x - 1) / (2 * step.noise_multiplier**2)
    result: Array = 0.5 * (1 + np.tanh(0.5 * log_odds))
    return result


@lru_cache(maxsize=1)
def _rule() -> tuple[Array, Array]:
    nodes, weights = np.polynomial.legendre.leggauss(_POINTS)
    return nodes, weights


@lru_cache(maxsize=4096)
def measure(step: SampledStep, dropped: float) -> StepMeasure:
    """Return `step`'s measure on panels that are enough for a slow integrand; it is small, and remembered."""
    return measured(step, dropped, 0)


def measured(step: SampledStep, dropped: float, panels: int) -> StepMeasure:
    """Return `step`'s measure on `panels` panels (0: enough for a slow integrand), leaving out at most `dropped`."""
    low, high = step.interval(dropped)
    noise = step.noise_multiplier
    if panels == 0:
        natural = min(1.2 * noise**2 / step.group_size, 1.5 * noise)
        panels = max(2, math.ceil((high - low) / (2 * natural)))
    half = (high - low) / (2 * panels)
    nodes, weights = _rule()
    centres = low + half * (2 * np.arange(panels) + 1)
    x = (centres[:, None] + half * nodes).ravel()
    loss = step.loss_of_sum(x)
    log_density = -((x / noise) ** 2) / 2 - math.log(noise * math.sqrt(2 * math.pi))
    if step.direction == REMOVE:
        log_density = log_density + loss
    else:
        loss = -loss
    log_weights = log_density + np.tile(np.log(weights * half), panels)
    return StepMeasure(step, loss, log_weights, log_density, step.slope(x), x, half, low, high)
