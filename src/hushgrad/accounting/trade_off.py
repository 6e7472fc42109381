"""The trade-off curve of a composition from few values of δ(ε).

Any ε gives a bound on the curve, and near the best one it is flat. So δ is taken roughly at some ε that all rates
share; between them its logarithm is interpolated, only to choose the ε at which it is then taken as it is quoted.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from scipy.interpolate import CubicSpline
from scipy.optimize import minimize_scalar

from hushgrad.accounting.composition import NormalForm
from hushgrad.accounting.saddle_point.accountant import delta_bounds
from hushgrad.accounting.saddle_point.contour import ROUGH_REACH

_LARGEST_EPSILON = 50.0  # beyond it, e^{−ε}(1 − δ(ε) − α) is nothing
_SHARED = 12
_PARTS = (0.25, 0.5, 0.75)
_REACH = 1000.0
_MOST_TRIED = 12
_ENOUGH = 1e-7
"""What another ε must promise, relative to what was found, to be tried."""

_TINY = 1e-300


class TradeOff:
    """f(α) = sup_{ε >= 0} max(0, 1 − δ(ε) − e^ε·α, e^{−ε}(1 − δ(ε) − α)) of `form`, which releases something noised."""

    def __init__(self, form: NormalForm, alphas: Sequence[float]) -> None:
        """Take δ roughly where the best ε of these rates may be."""
        self._form = form
        self._of_zero = delta_bounds(form, 0.0).upper
        ends = [self._end(alpha) for alpha in alphas]
        largest, smallest = max(ends, default=0.0), min((end for end in ends if end > 0), default=0.0)
        self._known = {0.0: self._of_zero}
        if largest > 0:
            shared = np.geomspace(smallest / 300, largest, _SHARED)
            for epsilon in sorted({*map(float, shared), *(end * part for end in ends for part in _PARTS)} - {0.0}):
                self._known[epsilon] = delta_bounds(form, epsilon, reach=ROUGH_REACH).upper

    def false_negative_rate(self, alpha: float) -> float:
        """Return f(`alpha`). Guarantee: a lower bound; every δ in it is an upper bound."""
        end = self._end(alpha)
        best, enough = max(0.0, 1 - self._of_zero - alpha), 0.0
        for _ in range(_MOST_TRIED if end > 0 else 0):
            epsilon, promised = self._best_guess(alpha, end)
            if promised <= best + max(enough, _ENOUGH * best):
                break
            found = delta_bounds(self._form, epsilon, reach=_REACH)
            self._known[epsilon] = found.upper
            best, enough = max(best, _value(epsilon, found.upper, alpha)), found.error * math.exp(-epsilon) / 4
        return best

    def _end(self, alpha: float) -> float:
        """Return an ε beyond which f(`alpha`) has no larger value than at 0: δ there falls by δ(0) at most."""
        at_zero = 1 - self._of_zero - alpha
        if at_zero >= alpha:  # the form 1 − δ(ε) − e^ε·α is the larger one
            return math.log1p(self._of_zero / alpha)
        return min(math.log((1 - alpha) / at_zero) if at_zero > 0 else math.inf, _LARGEST_EPSILON)

    def _best_guess(self, alpha: float, end: float) -> tuple[float, float]:
        known = sorted(self._known.items())
        shift = known[1][0]
        place = np.log(np.array([epsilon for epsilon, _ in known]) + shift)
        log_delta = CubicSpline(place, np.log(np.maximum([delta for _, delta in known], _TINY)))

        def promised(at: float) -> float:
            return _value(math.exp(at) - shift, math.exp(float(log_delta(at))), alpha)

        limits = (float(place[0]), min(math.log(end + shift), float(place[-1])))
        tried = np.linspace(*limits, 60)
        first = int(np.argmax([promised(float(at)) for at in tried]))
        inside = (float(tried[max(first - 1, 0)]), float(tried[min(first + 1, len(tried) - 1)]))
        found = minimize_scalar(lambda at: -promised(at), bounds=inside, method="bounded", options={"xatol": 1e-5})
        return max(math.exp(float(found.x)) - shift, 0.0), promised(float(found.x))


def _value(epsilon: float, delta: float, alpha: float) -> float:
    return max(1 - delta - math.exp(epsilon) * alpha, math.exp(-epsilon) * (1 - delta - alpha))
