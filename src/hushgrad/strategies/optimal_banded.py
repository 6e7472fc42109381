"""The banded strategy with the least noise in prefix sums."""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from hushgrad.arguments import whole_number
from hushgrad.errors import InvalidArgumentError
from hushgrad.strategies.banded import INDEPENDENT, BandedStrategy, PrefixError
from hushgrad.strategies.strategy import Vector


def square_root(bands: int) -> Vector:
    """Return the first `bands` coefficients of the square root of prefix sums: binomial(2k, k)/4^k."""
    k = np.arange(1, whole_number("bands", bands, minimum=1))
    return np.concatenate([[1.0], np.cumprod((2 * k - 1) / (2 * k))])


@lru_cache(maxsize=256)
def optimal_banded(steps: int, bands: int) -> BandedStrategy:
    """Return the strategy of `bands` bands that minimises the mean error of the first `steps` prefix sums.

    The error is taken times ‖c‖², so that every participation costs what it does with independent noise. L-BFGS with
    the analytic gradient, from the square root, in float64 (McKenna 2024, arXiv:2405.15913, section 4).

    Raises `InvalidArgumentError` unless 1 <= bands <= steps.
    """
    n, count = whole_number("steps", steps, minimum=1), whole_number("bands", bands, minimum=1)
    if count > n:
        raise InvalidArgumentError(
            f"{count} bands are more than the {n} steps that are planned", where="bands", cure="Take at most as many"
        )
    if count == 1:
        return INDEPENDENT
    # What is best for a few times as many steps as bands is nearly best for any number, and found sooner.
    found = square_root(count)[1:]
    for horizon in dict.fromkeys((min(n, 16 * count), n)):
        found = _improved(found, horizon)
    # The optimum falls from coefficient to coefficient; what rounding leaves of a rise is taken away.
    return BandedStrategy(tuple(np.minimum.accumulate(np.concatenate([[1.0], found])).tolist()))


def _improved(later: Vector, steps: int) -> Vector:
    """Return c_1, c_2, … of least loss for c_0 = 1 (the scale is chosen by the norm alone), from a start."""
    from scipy.optimize import minimize

    def loss(later: Vector) -> tuple[float, Vector]:
        c = np.concatenate([[1.0], later])
        error, squares = PrefixError.of(c, steps, with_gradient=True), float(c @ c)
        if not np.isfinite(error.value):
            return 1e3, np.zeros(len(later))  # a step of the search that went too far, and is taken back
        return float(np.log(error.value * squares)), error.gradient / error.value + 2 * later / squares

    options = {"maxiter": 5000, "maxfun": 20000, "ftol": 1e-14, "gtol": 1e-9}
    bounds = [(0.0, 1.0)] * len(later)
    best: Vector = minimize(loss, later, jac=True, method="L-BFGS-B", bounds=bounds, options=options).x
    return best
