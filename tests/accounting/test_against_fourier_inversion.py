"""ε against an independent computation, Fourier inversion of the privacy loss, which shares no code with hushgrad.

    δ(ε) = 1/(2πi) ∫ exp(Σ_j T_j K_j(z) − zε) / (z(z+1)) dz  over Re z = c > 0,   K(z) = log E exp(zL),

for both directions. The contour through the saddle point keeps relative precision at any δ. Not for a single step with
little noise, where the integrand decays slowly.
"""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.optimize import brentq, minimize_scalar
from scipy.special import logsumexp

from hushgrad.accounting import PoissonSampled, epsilon, epsilon_bounds

Sampled = tuple[float, float, int]


class Curve:
    """The privacy curve of sampled Gaussian steps in one direction ("remove" or "add")."""

    def __init__(self, sampled: list[Sampled], direction: str) -> None:
        self.terms = []
        for q, sigma, count in sampled:
            x = np.arange(-14 * sigma, 1 + 60 * sigma, sigma / 60) if direction == "remove" else None
            if x is None:
                x = np.arange(-60 * sigma, 14 * sigma, sigma / 60)
            density = -((x / sigma) ** 2) / 2 - math.log(60 * math.sqrt(2 * math.pi))
            loss = (
                np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
                if q < 1
                else ((2 * x - 1) / (2 * sigma**2))
            )
            self.terms.append((density + loss, loss, count) if direction == "remove" else (density, -loss, count))

    def cumulant(self, z: np.ndarray) -> np.ndarray:
        """Return Σ T K(z)."""
        total = np.zeros(len(z), dtype=complex)
        for density, loss, count in self.terms:
            for start in range(0, len(z), 256):
                part = z[start : start + 256]
                exponent = density + part[0].real * loss
                live = exponent > exponent.max() - 80
                peak = exponent[live].max()
                weights = np.exp(exponent[live] - peak)
                values = np.exp(1j * np.outer(part.imag, loss[live])) @ weights
                total[start : start + 256] += count * (np.log(values) + peak)
        return total

    def real_cumulant(self, c: float) -> float:
        return float(sum(count * logsumexp(density + c * loss) for density, loss, count in self.terms))

    def log_delta(self, epsilon: float) -> float:
        def exponent(log_c: float) -> float:
            c = math.exp(log_c)
            return self.real_cumulant(c) - c * epsilon - math.log(c * (c + 1))

        c = math.exp(minimize_scalar(exponent, bounds=(-6, 9), method="bounded", options={"xatol": 1e-3}).x)
        variance = 0.0
        for density, loss, count in self.terms:
            weights = np.exp(density + c * loss - logsumexp(density + c * loss))
            variance += count * float(weights @ (loss - weights @ loss) ** 2)
        h = min(2 * math.pi / (40 * math.sqrt(variance)), 2 * math.pi * c / 45, 0.2 * c)
        total, start, base = 0.0, 0, self.real_cumulant(c)
        while True:
            t = h * np.arange(start, start + 1024)
            z = c + 1j * t
            values = np.exp(self.cumulant(z) - base - 1j * t * epsilon) / (z * (z + 1))
            if start == 0:
                values[0] /= 2
            total += float(values.real.sum())
            start += 1024
            if np.abs(values[-64:]).max() * start < 1e-10 * abs(total):
                break
            if start > 1 << 20:
                raise ArithmeticError("the integrand does not decay")
        return base - c * epsilon + math.log(total * h / math.pi)


def oracle_epsilon(sampled: list[Sampled], delta: float) -> float:
    """Return ε at `delta` for `(sampling_rate, noise_multiplier, count)` triples, to about eight digits."""
    result = 0.0
    for direction in ("remove", "add"):
        curve = Curve(sampled, direction)
        low, high = result, max(2 * result, 1e-3)
        if curve.log_delta(max(low, 1e-9)) <= math.log(delta):
            continue
        while curve.log_delta(high) > math.log(delta):
            low, high = high, 2 * high
        result = float(brentq(lambda e: curve.log_delta(e) - math.log(delta), max(low, 1e-9), high, rtol=1e-10))  # noqa: B023
    return result


@pytest.mark.parametrize(
    ("sampled", "delta"),
    [
        ([(0.01, 1.0, 1000)], 1e-5),
        ([(0.001, 1.0, 10**6)], 1e-8),
        ([(0.2, 5.0, 300)], 1e-7),
        ([(0.02, 1.0, 200), (0.005, 0.8, 500)], 1e-6),
    ],
)
def test_pld_lies_within_a_thousandth_above_the_exact_epsilon(sampled: list[Sampled], delta: float) -> None:
    """Guarantee: an upper bound, with an allowance in δ for the rounding of the FFT."""
    exact = oracle_epsilon(sampled, delta)
    value = epsilon([(PoissonSampled(rate, noise), count) for rate, noise, count in sampled], delta, "pld")
    assert exact * (1 - 1e-8) <= value <= exact * 1.001


@pytest.mark.parametrize(
    ("sampled", "delta"),
    [
        ([(0.01, 1.0, 1000)], 1e-12),
        ([(0.001, 1.0, 10**6)], 1e-8),
        ([(0.2, 5.0, 300)], 1e-14),
        ([(0.02, 1.0, 200), (0.005, 0.8, 500)], 1e-6),
    ],
)
def test_saddle_point_bounds_hold_the_exact_epsilon(sampled: list[Sampled], delta: float) -> None:
    """Guarantee: `upper` is an ε that holds, and it is at most `error` above the smallest one."""
    exact = oracle_epsilon(sampled, delta)
    bounds = epsilon_bounds([(PoissonSampled(rate, noise), count) for rate, noise, count in sampled], delta)
    assert bounds.lower <= exact <= bounds.upper <= bounds.lower * (1 + 1e-6)
