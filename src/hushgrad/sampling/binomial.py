"""The size of a Poisson draw: Binomial(N, q) by inversion of a table in integer arithmetic."""

from __future__ import annotations

from bisect import bisect_right
from fractions import Fraction

from hushgrad.arguments import probability, whole_number
from hushgrad.errors import InvalidArgumentError

_FIXED_POINT_BITS = 256
_WORD_BITS = 128
_TRUNCATION_BITS = 136
_MAX_TRIALS = 1 << 40


class BinomialTable:
    """The distribution function of Binomial(trials, rate), to be inverted with 128-bit words.

    `rate` is the exact rational number that its float64 is. Weights start from 2**256 at the mode and go outward by
    the exact ratio of neighbouring probabilities, rounded down to integers, until what remains is negligible.

    Guarantee: the total variation distance between `size_at(word)` of a uniform word and Binomial(trials, rate) is
    below 2**-64.

    Proof, with N = trials < 2**40 and every probability relative to the mode's. Going outward the ratios are at most
    1, so rounding errors add up: a weight is below its true value by at most N. A side ends when weight · N < 2**120;
    as probabilities only fall from there, what it leaves out is at most N·(weight + N)/2**256 < 2**-135. The errors
    of the weights are together at most N**2/2**256 < 2**-175. Rounding the distribution function down to multiples
    of 2**-128 moves at most 2**-128 across each of at most N + 1 thresholds, less than 2**-87. The sum is below 2**-86.
    """

    def __init__(self, trials: int, rate: float) -> None:
        self.trials = whole_number("trials", trials, minimum=1)
        if self.trials >= _MAX_TRIALS:
            raise InvalidArgumentError(
                f"must be < {_MAX_TRIALS}, got {self.trials}", where="trials", cure="Draw from fewer records"
            )
        exact = Fraction(probability("rate", rate))
        success, failure = exact.numerator, exact.denominator - exact.numerator
        mode = min(self.trials, (self.trials + 1) * success // exact.denominator)
        above = self._weights_above(mode, success, failure)
        below = self._weights_below(mode, success, failure)
        self.smallest = mode - len(below)
        weights = [*reversed(below), 1 << _FIXED_POINT_BITS, *above]
        total = sum(weights)
        self._thresholds: list[int] = []
        cumulative = 0
        for weight in weights:
            cumulative += weight
            self._thresholds.append((cumulative << _WORD_BITS) // total)

    def size_at(self, word: int) -> int:
        """Return the size for a `word` in [0, 2**128); the size grows with the word."""
        return self.smallest + bisect_right(self._thresholds, word)

    def probability_of(self, size: int) -> Fraction:
        """Return the exact probability with which `size_at` returns `size` for a uniform word."""
        position = size - self.smallest
        if not 0 <= position < len(self._thresholds):
            return Fraction(0)
        before = self._thresholds[position - 1] if position else 0
        return Fraction(self._thresholds[position] - before, 1 << _WORD_BITS)

    def _weights_above(self, mode: int, success: int, failure: int) -> list[int]:
        weights: list[int] = []
        weight, size = 1 << _FIXED_POINT_BITS, mode
        while size < self.trials and self._counts(weight):
            weight = weight * (self.trials - size) * success // ((size + 1) * failure)
            size += 1
            weights.append(weight)
        return weights

    def _weights_below(self, mode: int, success: int, failure: int) -> list[int]:
        weights: list[int] = []
        weight, size = 1 << _FIXED_POINT_BITS, mode
        while size > 0 and self._counts(weight):
            weight = weight * size * failure // ((self.trials - size + 1) * success)
            size -= 1
            weights.append(weight)
        return weights

    def _counts(self, weight: int) -> bool:
        return weight * self.trials >> (_FIXED_POINT_BITS - _TRUNCATION_BITS) > 0
