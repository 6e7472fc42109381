"""What few pairs (ε, δ) that hold for a composition tell of all others, and of attacks: bounds from below and above.

Each pair bounds the whole trade-off curve (Dong, Roth & Su 2019, arXiv:1905.02383, proposition 2.12) by the two lines
1 − δ − e^ε·α and e^−ε(1 − δ − α), and δ at every other ε (Kairouz, Oh & Viswanath 2015, arXiv:1311.0776, theorem 3.1:
a mechanism that is (ε, δ)-private is no worse than a randomised response with these numbers).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.composition import Composition

Floats = NDArray[np.float64]

_LARGEST_EPSILON = 500.0


@dataclass(frozen=True, eq=False, slots=True)
class PrivacyCurve:
    """Pairs that hold together: `epsilons[k]` at `deltas[k]`.

    Guarantee: whatever it returns holds for every mechanism for which all of its pairs hold.
    """

    epsilons: Floats
    deltas: Floats

    @classmethod
    def of_epsilon(cls, composition: Composition, deltas: Floats) -> PrivacyCurve:
        """Return the pairs at these δ, by the default accountant."""
        found = np.array([epsilon(composition, float(delta)) for delta in deltas])
        return cls(np.minimum(found, _LARGEST_EPSILON * 2), np.asarray(deltas, dtype=np.float64))

    @classmethod
    def of_delta(cls, delta: Callable[[float], float], epsilons: Floats) -> PrivacyCurve:
        """Return the pairs at these ε, by a function that returns a δ at which each holds."""
        return cls(np.asarray(epsilons, dtype=np.float64), np.array([delta(float(at)) for at in epsilons]))

    def delta(self, at: float) -> float:
        """Return a δ at which ε = `at` holds."""
        known = self.epsilons < _LARGEST_EPSILON
        large = np.exp(self.epsilons[known])
        more = np.maximum(large - math.exp(min(at, _LARGEST_EPSILON)), 0.0) / (1 + large)
        return float(min(1.0, np.min(self.deltas[known] + (1 - self.deltas[known]) * more, initial=1.0)))

    def false_negative_rates(self, alphas: Floats) -> Floats:
        """Return the least false-negative rate of an attack at each false-positive rate, [n], at least 0."""
        known = self.epsilons < _LARGEST_EPSILON
        grown = np.exp(self.epsilons[known])[:, None]
        left = (1 - self.deltas[known])[:, None]
        alpha = np.asarray(alphas, dtype=np.float64)[None, :]
        lines = np.concatenate([left - grown * alpha, (left - alpha) / grown, np.zeros((1, alpha.shape[1]))])
        found: Floats = lines.max(axis=0)
        return found
