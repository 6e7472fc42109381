"""The transform of a measure on points, at equally spaced frequencies, with a bound on its error.

Where few frequencies meet few points it is one matrix product. Where both are many, the points are moved to the nearest
places of a lattice of N >= 2·nodes places and one period, where fast Fourier transforms take them all at once. What
that move turns the k-th node's phase by, |2πkr/N| <= π/2 for r in [−½, ½], is put back by the expansion of Jacobi and
Anger,

    e^{izx} = J_0(z) + 2 Σ_{p>=1} i^p J_p(z) T_p(x),    x = 2r in [−1, 1],  z = πk/N <= π/2,

of which `_TERMS` terms leave out at most 2 Σ_{p>=n} J_p(z) <= 2.2·(z/2)^n/n!, below 1e-16.
"""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
from scipy.fft import next_fast_len, rfft

from hushgrad.accounting.saddle_point.step_measure import Array

Complex = npt.NDArray[np.complex128]

_TERMS = 17
_DIRECT = 1 << 20
"""Products of nodes and points up to which the matrix product is taken."""

_EPS = 2.0**-52


def transform(losses: Array, weights: Array, interval: float, nodes: int) -> tuple[Complex, float]:
    """Return Σ_i weights_i e^{ik·interval·losses_i} for k = 0..nodes−1, and a bound on the error that any of them has.

    `weights` are not negative and add up to 1. The bound is 0 where the sum is taken as it stands: rounding of that is
    the caller's. Else it is a model of what a fast Fourier transform rounds, not a proof: 2⁻⁵² for each of its levels.
    """
    live = weights > 1e-21 * weights.max()
    losses, weights = losses[live], weights[live]
    if nodes * len(losses) <= _DIRECT:
        return _by_blocks(interval * losses, weights, nodes), 0.0
    return _on_a_lattice(losses, weights, interval, nodes)


def _by_blocks(theta: Array, weights: Array, nodes: int) -> Complex:
    """Return the sums by blocks: e^{i(na + b)θ} = e^{inaθ}·e^{ibθ}, so that most of the work is one matrix product."""
    block = math.ceil(math.sqrt(nodes))
    inner: Complex = np.exp(1j * np.outer(np.arange(block), theta))
    outer: Complex = np.exp(1j * np.outer(block * np.arange(-(-nodes // block)), theta))
    result: Complex = ((outer * weights) @ inner.T).ravel()[:nodes]
    return result


def _on_a_lattice(losses: Array, weights: Array, interval: float, nodes: int) -> tuple[Complex, float]:
    places = next_fast_len(2 * nodes, real=True)
    at = losses * (interval * places / (2 * math.pi))
    nearest = np.rint(at)
    x = 2 * (at - nearest)
    index = np.mod(nearest, places).astype(np.intp)
    bessel = _bessel_functions(math.pi / places * np.arange(nodes))
    result = np.zeros(nodes, dtype=complex)
    before, here = np.zeros_like(x), np.ones_like(x)  # T_{p−1} and T_p
    for p in range(_TERMS):
        moments = np.bincount(index, weights * here, places)
        result += ((1 if p == 0 else 2) * 1j**p) * (bessel[p] * np.conj(rfft(moments)[:nodes]))
        before, here = here, (x if p == 0 else 2 * x * here - before)
    left_out = 2.2 * (math.pi / 4) ** _TERMS / math.factorial(_TERMS)
    return result, left_out + _EPS * (4 + math.log2(places))


def _bessel_functions(z: Array) -> Array:
    """Return J_p(z) for p = 0.._TERMS−1 and z in [0, π/2]: [terms, nodes].

    With y = (z/2)², J_p(z) = y^{p/2}/p!·g_p, where g_p = 1 − y/(p+1)·(1 − y/(2(p+2))·(1 − ...)) begins the recurrence
    g_{p−1} = g_p − y/(p(p+1))·g_{p+1}, which loses no digits downwards.
    """
    y = (z / 2) ** 2
    last = np.ones((2, len(z)))  # g_{p+1} and g_p
    for k in range(9, 0, -1):
        last = 1 - y / (k * np.array([[_TERMS + k], [_TERMS - 1 + k]])) * last
    above, here = last
    result = np.empty((_TERMS, len(z)))
    for p in range(_TERMS - 1, -1, -1):
        result[p] = here
        if p:
            above, here = here, here - y / (p * (p + 1)) * above
    power = np.ones_like(z)
    for p in range(1, _TERMS):
        power *= z / (2 * p)
        result[p] *= power
    return result
