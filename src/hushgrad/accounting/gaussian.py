"""The exact privacy curve of a composition of Gaussian releases (Balle & Wang, 2018, arXiv:1805.06530, theorem 8).

Releases with noise multipliers σ_j compose to one release with 1/σ² = Σ 1/σ_j², and for it

    δ(ε) = Φ(μ/2 − ε/μ) − e^ε Φ(−μ/2 − ε/μ),    μ = 1/σ.

Evaluated in logarithms, so that neither small δ nor large ε lose digits.
"""

from __future__ import annotations

import math

from scipy.optimize import brentq
from scipy.special import erfcx, log_ndtr

# Below the first, the two terms of δ agree to so many digits that their difference is taken by the midpoint rule
# (relative error μ²/24). Above the second, ε/μ loses digits, and the tail bound is within 3e-5 of the truth.
_SMALL_MU = 1e-5
_LARGE_MU = 1e6
_FAR = 1e5


def log_delta(mu: float, epsilon: float) -> float:
    """Return log δ(ε) of a Gaussian release with μ = 1/noise_multiplier in (0, 1e6], at `epsilon` >= 0."""
    if mu < _SMALL_MU:
        midpoint = epsilon / mu
        if midpoint > _FAR:  # 1 − x·mills(x) is 1/x² to a relative 3/x²
            return -((midpoint - mu / 2) ** 2) / 2 - math.log(2 * math.pi) / 2 + math.log(mu) - 2 * math.log(midpoint)
        mills = math.sqrt(math.pi / 2) * float(erfcx(midpoint / math.sqrt(2)))
        log_density = -((midpoint - mu / 2) ** 2) / 2 - math.log(2 * math.pi) / 2
        return log_density + math.log(mu) + math.log1p(-midpoint * mills)
    upper = float(log_ndtr(mu / 2 - epsilon / mu))
    lower = epsilon + float(log_ndtr(-mu / 2 - epsilon / mu))
    if lower >= upper:
        return -math.inf
    return upper + math.log(-math.expm1(lower - upper))


def gaussian_epsilon(precision: float, delta: float) -> float:
    """Return the smallest ε >= 0 at which Gaussian releases with `precision` = Σ 1/σ_j² spend at most `delta`.

    Guarantee: the result is exact to a relative 1e-9, and on the private side of it. Where Σ 1/σ_j² > 1e12 (an ε above
    5e11) it is an upper bound, at most 3e-5 too high. A precision that overflows to infinity gives infinity.
    """
    if precision == 0:
        return 0.0
    if math.isinf(precision):
        return math.inf
    mu = math.sqrt(precision)
    # δ(ε) <= Φ(μ/2 − ε/μ) <= exp(−z²/2) at ε = μ²/2 + μz.
    upper = precision / 2 + mu * math.sqrt(-2 * math.log(delta))
    if mu > _LARGE_MU:
        return upper
    target = math.log(delta)
    if log_delta(mu, 0.0) <= target:
        return 0.0
    root = float(brentq(lambda epsilon: _excess(mu, epsilon, target), 0.0, upper, xtol=1e-300, rtol=1e-13))
    return min(root * (1 + 1e-10), upper)


def _excess(mu: float, epsilon: float, target: float) -> float:
    # A finite floor: δ = 0 after rounding would put −inf into the interpolation of the root finder.
    return max(log_delta(mu, epsilon), -1e6) - target
