"""A strategy: the matrix C of a factorisation A = B·C of prefix sums; it says how noise is correlated between steps.

Training adds to the sum of step t not z_t but x_t, with C·x = z: what is released is C⁻¹(C·G + Z), a function of
C·G + Z, in which each record's contributions are spread over later rows by C. So privacy is that of Gaussian noise on
C·G, and the noise of a sum of releases is that of B = A·C⁻¹, in which much of it cancels (Denisov et al. 2022,
arXiv:2202.08312; Choquette-Choo et al. 2023, arXiv:2306.08153).

All matrices here are lower-triangular Toeplitz: row t is the first column, shifted by t. A prefix of the rows is then
the strategy of a shorter run, and no column is longer in a longer one.

A kind is a file: a frozen dataclass of public constants. Nobody else asks which kind it is.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

Vector = NDArray[np.float64]


class Memory(Protocol):
    """What one series of releases remembers of earlier steps, in tensors of one shape; it begins empty.

    One memory goes one way: a series is correlated, or it is whitened.
    """

    def correlated(self, fresh: Any) -> Any:
        """Return row t of C⁻¹Z from the independent noise of step t, which may be written over; call once a step."""

    def whitened(self, noise: Any) -> Any:
        """Return the independent noise of step t from row t of C⁻¹Z, which is kept; call once a step."""


class Strategy(ABC):
    """A lower-triangular Toeplitz matrix with non-negative, non-increasing coefficients.

    So the contributions of a record that takes part often, and not within some number of steps, add up to most where
    it takes part as early and as often as it may (Kalinin & Lampert 2024, arXiv:2405.13763).
    """

    @property
    @abstractmethod
    def bands(self) -> int | None:
        """How many coefficients are not 0: noise is independent of that of so many steps before. None: all of them."""

    @abstractmethod
    def coefficients(self, steps: int) -> Vector:
        """Return the first `steps` coefficients: the first column of C."""

    @abstractmethod
    def sensitivity_squared(self, steps: int, min_separation: int) -> float:
        """Return the greatest ‖C·u‖², or more, over 0/1 vectors u of a record that takes part that many steps apart.

        Or further apart; in units of the squared clip norm, over the first `steps` rows. It never falls with `steps`.
        """

    @abstractmethod
    def mean_error(self, steps: int) -> float:
        """Return the mean over t <= `steps` of the variance of the first t releases' sum, for noise z of variance 1."""

    @abstractmethod
    def memory(self) -> Memory:
        """Return the empty memory of a new series."""

    @abstractmethod
    def describe(self) -> str:
        """Return one line that names the kind and all constants, these as hexadecimal floating-point numbers."""


def hexadecimal(values: tuple[float, ...]) -> str:
    """Return numbers without rounding, as text."""
    return ", ".join(value.hex() for value in values)
