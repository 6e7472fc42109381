"""δ(ε) of a sum of privacy losses by a contour integral through the saddle point, with a bound on every error.

For independent losses with sum L and cumulant generating function K(z) = log E e^{zL} (Alghamdi, Asoodeh, Calmon,
Kosut, Sankar & Wei, 2022, arXiv:2208.09595)

    δ(ε) = E(1 − e^{ε−L})_+ = 1/(2πi) ∫ e^{K(z) − zε} / (z(z+1)) dz   along Re z = c > 0,

and under composition K adds up, so the number of equal steps costs nothing. The integral is the trapezoid rule with
the interval h. What that rule gives is known exactly: by Poisson summation, with the period P = 2π/h,

    (h/2π) Σ_k e^{K(c+ikh) − (c+ikh)ε} / ((c+ikh)(c+ikh+1)) = Σ_m e^{cmP} δ(ε + mP) >= δ(ε),

so the rule only ever errs upwards, by at most

    Σ_{m>=1} e^{−cmP}                      as δ <= 1, and
    Σ_{m>=1} e^{cmP} δ(ε + mP)             where δ(ε') <= C_s e^{K(s) − sε'} for every s > 0,  C_s = s^s/(s+1)^{s+1}.

Further errors, each bounded: nodes beyond |u| = U are left out (`LossSum.log_decay`), the transform of a step is a
quadrature (`quadrature_error`), outcomes of a step of total probability `dropped` are left out (δ loses at most that),
and floating point rounds (2⁻⁵² times the sizes of the numbers that are added; a model of rounding, not a proof). Where
the nodes up to a U that is affordable do not suffice, the sum gets an additional Gaussian release of a small precision
p: releasing more never lowers δ, so the upper bound stays one, and the lower bound is corrected for it (see
`Contour.bounds`). Two of the bounds take maxima and variations over sampled points, with stated margins.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
from scipy.optimize import brentq

from hushgrad.accounting.bounds import DeltaBounds
from hushgrad.accounting.saddle_point.loss_sum import Cumulants, LossSum
from hushgrad.accounting.saddle_point.step_measure import Array
from hushgrad.accounting.saddle_point.transform import Complex, transform

_ALIAS = 1e-10  # of δ, for what aliasing may add
_TAIL = 1e-8  # of δ, for what nodes that are left out may add
_QUADRATURE, _QUADRATURE_OF_SMOOTHED = 1e-9, 1e-7  # of δ, for what the quadrature of the transforms may add
_NODES = 1 << 16
_WORK, _WORK_OF_A_STEP = 1.5e8, 5e5
"""How much is formed at most: about 2 ns each, so that many different steps may take longer."""

REACH, ROUGH_REACH = 4000.0, 200.0
"""Nodes beyond this multiple of c are replaced by smoothing, which then costs some 1e-6 of δ; roughly, some 1e-3."""

_EPS = 2.0**-52
_SMALLEST_C, _LARGEST_C = 1e-9, 1e12


def saddle_point(total: LossSum, epsilon: float) -> float:
    """Return the c > 0 that minimises K(c) − cε − log(c(c+1))."""

    def slope(log_c: float) -> float:
        c = math.exp(log_c)
        return (total.cumulants(c).mean - epsilon) * c - 1 - c / (1 + c)

    return _root(slope)


def saddle_point_of_delta(total: LossSum, delta: float) -> tuple[float, float]:
    """Return (c, ε): the saddle point c of an ε at which δ(ε) is roughly `delta`, by the saddle-point approximation."""
    target = math.log(delta)

    def excess(log_c: float) -> float:
        c = math.exp(log_c)
        return target - log_delta_estimate(total, c, total.cumulants(c).mean - 1 / c - 1 / (1 + c))

    c = _root(excess)
    return c, total.cumulants(c).mean - 1 / c - 1 / (1 + c)


def log_delta_estimate(total: LossSum, c: float, epsilon: float) -> float:
    """Return the saddle-point approximation of log δ(`epsilon`), with c its saddle point; only a first guess."""
    at = total.cumulants(c)
    curvature = at.variance + 1 / c**2 + 1 / (1 + c) ** 2
    return at.value - c * epsilon - math.log(c) - math.log1p(c) - 0.5 * math.log(2 * math.pi * curvature)


def _root(increasing: Callable[[float], float]) -> float:
    """Return e^t at the root t of a function that increases in t; the end of the range where there is none."""
    low, high = math.log(_SMALLEST_C), math.log(_LARGEST_C)
    step, here = 1.0, 0.0
    if increasing(here) < 0:
        while here < high and increasing(min(here + step, high)) < 0:
            here, step = min(here + step, high), step * 1.6
        if here >= high:
            return _LARGEST_C
        low, high = here, min(here + step, high)
    else:
        while here > low and increasing(max(here - step, low)) >= 0:
            here, step = max(here - step, low), step * 1.6
        if here <= low:
            return _SMALLEST_C
        low, high = max(here - step, low), here
    return math.exp(float(brentq(increasing, low, high, xtol=1e-3)))


class Contour:
    """Nodes on Re z = c for one sum of losses, from which δ at any ε near the one they were made for can be read."""

    def __init__(self, total: LossSum, c: float, epsilon: float, delta: float, reach: float = REACH) -> None:
        """Place nodes for δ(ε) of about `delta` at about `epsilon`; beyond `reach`·c smoothing replaces them."""
        self.c = c
        self._total = total
        self._delta = delta
        self._alias_allowed, self._wanted = math.log(_ALIAS * delta), math.log(_TAIL * delta)
        at = total.cumulants(c)
        self._chernoff = [(s, total.cumulants(s).value + s * math.log(s) - (s + 1) * math.log1p(s))
                          for s in (c * f for f in (1.02, 1.05, 1.1, 1.2, 1.35, 1.6, 2.0, 3.0, 5.0))]  # fmt: skip
        self.interval = 2 * math.pi / self._period(epsilon)
        panels, end = self._place(at, epsilon, reach * c)
        nodes = 1 + math.ceil(end / self.interval)
        self._u = self.interval * np.arange(nodes)
        log_phi = np.zeros(nodes, dtype=complex)
        rounding = 0.0
        for part, count in total.refined(panels):
            exponent = part.log_weights + c * part.losses
            weights = np.exp(exponent - exponent.max())
            weights /= weights.sum()
            phi, error = transform(part.losses, weights, self.interval, nodes)
            log_phi += count * np.log(phi)
            sizes = part.sizes + (1 + c) * np.abs(part.losses) + 4
            rounding += count * (_EPS * float(weights @ sizes) + error)
        self._rounding = rounding + 4 * _EPS
        z = c + 1j * self._u
        log_phi += (total.precision + self.smoothing) / 2 * (1j * self._u * (2 * c + 1) - self._u**2)
        self._density: Complex = np.exp(log_phi)
        self._density[0] /= 2
        self._integrand: Complex = self._density / (z * (z + 1))
        self._unsigned = float(np.abs(1 / (z * (z + 1))).sum()) * self.interval / math.pi

    def _place(self, at: Cumulants, epsilon: float, reach: float) -> tuple[list[int], float]:
        """Choose the last node's frequency, the smoothing and the quadratures' panels; return panels and frequency."""
        total, c = self._total, self.c
        scale = at.value - c * epsilon  # log of the integrand at u = 0, but for 1/(z(z+1))
        start = 2.0 / math.sqrt(at.variance + 1 / c**2)
        frequencies, decay = total.log_decay(c, start, self._wanted - max(scale, 0) - 40)
        log_tail = _log_tail(frequencies, decay, 0.0) + scale
        enough = np.nonzero(log_tail <= self._wanted)[0]
        self.smoothing = 0.0
        end = float(frequencies[enough[0]]) if len(enough) else math.inf
        if end > reach or end / self.interval > _NODES:
            end = min(end, reach, _NODES * self.interval)
            self.smoothing = self._needed_smoothing(frequencies, log_tail, end)
        # Where the integral cancels, its error counts as much more.
        tolerance = (_QUADRATURE_OF_SMOOTHED if self.smoothing else _QUADRATURE) * min(
            1.0, 2 * c * math.exp(min(math.log(self._delta) - scale, 300.0))
        )
        panels, self._quadrature = total.resolution(c, end, tolerance)
        most = max(_WORK, len(panels) * _WORK_OF_A_STEP)
        while (excess := self._work(panels, end) / most) > 1 and end > 20 * start:
            end /= min(1.05 * excess, 3.0)
            self.smoothing = self._needed_smoothing(frequencies, log_tail, end)
            panels, self._quadrature = total.resolution(c, end, tolerance)
        p = self.smoothing
        self._log_scale = at.value + p * c * (c + 1) / 2
        reached = int(np.searchsorted(frequencies, end * (1 + 1e-9), side="right")) - 1
        # Bounds hold from each frequency on, so that of the last one below the end serves it.
        frequencies, decay = frequencies[max(reached, 0) :].copy(), decay[max(reached, 0) :]
        frequencies[0] = end
        self._log_tail = float(_log_tail(frequencies, decay, p)[0]) + self._log_scale
        self._log_density_tail = float(_log_tail(frequencies, decay + 2 * np.log(frequencies), p)[0]) + self._log_scale
        return panels, end

    def _needed_smoothing(self, frequencies: Array, log_tail: Array, end: float) -> float:
        reached = max(int(np.searchsorted(frequencies, end, side="right")) - 1, 0)
        return 2 * max(float(log_tail[reached]) - self._wanted + 2.0, 1.0) / end**2

    def _work(self, panels: list[int], end: float) -> float:
        nodes = end / self.interval
        return 24 * sum(panels) * (min(nodes, 150) + 300) + 200 * len(panels) * nodes

    def _period(self, epsilon: float) -> float:
        left = -self._alias_allowed / self.c
        right = min((bound - s * epsilon - self._alias_allowed) / (s - self.c) for s, bound in self._chernoff)
        return max(left, right) * 1.02

    def bounds(self, epsilon: float) -> DeltaBounds:
        """Return bounds on δ(`epsilon`).

        Guarantee: δ(ε) lies between them, up to what `LossSum.log_decay` and `quadrature_error` name as sampled.

        With smoothing, the sum was raised by an independent G_p ~ N(p/2, p), and the upper bound holds as it is. With
        f_s the density of the sum raised by G_s, the rise is ½∫_0^p f_s(ε) ds; and f_s(ε) <= sqrt(p/s)·f_p(ε + (p−s)/2)
        because the normal density of variance s is at most sqrt(p/s) times that of variance p. So the rise is at most p
        times the largest f_p on [ε, ε + p/2], which is read from the same nodes.
        """
        upper, lower = self._read(epsilon)
        if self.smoothing:
            half = self.smoothing / 2
            density = max(self._read_density(epsilon + at) for at in (0.0, half / 2, half))
            lower -= 1.01 * self.smoothing * density
        return DeltaBounds(max(lower, 0.0), min(upper, 1.0))

    def upper(self, epsilon: float) -> float:
        """Return the upper bound on δ(`epsilon`)."""
        return min(self._read(epsilon)[0], 1.0)

    def _read_density(self, epsilon: float) -> float:
        factor = math.exp(min(self._log_scale - self.c * epsilon, 690.0))
        signed = float((self._density * np.exp(-1j * self._u * epsilon)).sum().real) * self.interval / math.pi
        return factor * max(signed, 0.0) + math.exp(min(self._log_density_tail - self.c * epsilon, 690.0))

    def _read(self, epsilon: float) -> tuple[float, float]:
        scale = self._log_scale - self.c * epsilon
        if scale > 690:  # far from where the nodes were placed
            return 1.0, 0.0
        factor = math.exp(scale)
        value = factor * float((self._integrand * np.exp(-1j * self._u * epsilon)).sum().real) * self.interval / math.pi
        size = factor * self._unsigned
        phase = _EPS * float(self._u[-1]) * abs(epsilon)
        error = size * (math.expm1(min(self._quadrature + self._rounding, 1.0)) + phase)
        error += math.exp(min(self._log_tail - self.c * epsilon, 690.0))
        return value + error + self._total.dropped, value - error - self._alias(epsilon)

    def _alias(self, epsilon: float) -> float:
        period = 2 * math.pi / self.interval
        left = 1 / math.expm1(min(self.c * period, 690.0))
        p = self.smoothing
        right = math.inf
        for s, bound in self._chernoff:
            exponent = bound + p * s * (s + 1) / 2 - s * epsilon
            gap = (s - self.c) * period
            if gap > 0.1:
                right = min(right, math.exp(min(exponent - gap, 690.0)) / -math.expm1(-gap))
        return left + right


def _log_tail(frequencies: Array, decay: Array, smoothing: float) -> Array:
    """Return, for each start j, a log bound on (h/π) Σ |φ(u)|/|z(z+1)| over the nodes beyond frequency j."""
    logs = decay - smoothing * frequencies**2 / 2 - np.log(frequencies) + math.log(2 / math.pi)
    result: Array = np.logaddexp.accumulate(logs[::-1])[::-1]
    return result
