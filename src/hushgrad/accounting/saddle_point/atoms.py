"""A privacy loss that is known as a finite measure, exactly: there is no step whose quadrature it would be."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hushgrad.accounting.saddle_point.step_measure import Array


@dataclass(frozen=True, slots=True, eq=False)
class Atoms:
    """Point i has `losses[i]`, monotone in i, and the probability exp(`log_weights[i]`); `infinite` is left out.

    Compared by identity: whoever makes one remembers it.
    """

    losses: Array
    log_weights: Array
    infinite: float = 0.0

    @property
    def sizes(self) -> Array:
        """How large the numbers are that a weight is computed from; rounding follows them."""
        result: Array = np.abs(self.log_weights)
        return result
