"""A monitor that stays on: the noise of every step, looked at in a few values, at next to no cost.

Every step it takes 64 values of one of the step's sums before noise is added, and again after: their difference is the
noise. Its running sum of squares must be that of N(0, (σC)²), and no run of values may come a second time. Noise that
is correlated between steps is whitened first, which takes 64 values of every sum.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cache

from torch import Tensor

from hushgrad.accounting.ledger.monitors import ALARM
from hushgrad.errors import NoiseMismatchError
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.monitor import Report
from hushgrad.strategies.banded import INDEPENDENT
from hushgrad.strategies.strategy import Memory, Strategy

VALUES = 64
_FIRST_LOOK = 1024
_LARGEST_SUM = 1e5
_RAREST = 1e-20
_FIRST_NOTE = 16
_FINGERPRINT = 8
# A sum that was added and taken away again leaves its rounding in the noise. Two draws agree in eight values on this
# grid with a probability below 1e-28, and some two of a million draws below 1e-16.
_GRID = 1024
_MOST_FINGERPRINTS = 1 << 20


class NoiseMonitor:
    """Watches the noise of one session.

    `values` noise values were looked at, and `ratio` is their standard deviation over the claimed one. The level is
    judged each time the number of values has doubled, from 1024 on, at nine standard errors: false alarms have a
    probability below 1e-12 in all. Values beside sums 1e5 times larger than the noise are left out, because rounding
    would be taken for noise.

    `verdict` and `finding()` are for the ledger.

    A sample whose sum of squares is as small as noise has it once in 1e20 steps is an alarm at once.

    Guarantee: noise that comes a second time, and noise of another level than is charged, end training with an error.
    """

    def __init__(self, alarms: Alarms = Alarms.RAISED) -> None:
        self.values = 0
        self.verdict = "as charged"
        self._alarms = alarms
        self._watched = 0
        self._next_note = _FIRST_NOTE
        self._squares = 0.0
        self._next_look = _FIRST_LOOK
        self._steps = 0
        self._seen: set[bytes] = set()
        self._strategy: Strategy = INDEPENDENT
        self._memories: dict[int, Memory] = {}
        self._spoilt: set[int] = set()

    def begin(self, strategy: Strategy) -> None:
        """Noise of this strategy begins: it is independent of all that came before."""
        self._strategy, self._memories, self._spoilt = strategy, {}, set()

    @property
    def ratio(self) -> float:
        """The measured standard deviation of the noise over the claimed one; NaN before the first value."""
        return math.sqrt(self._squares / self.values) if self.values else math.nan

    @property
    def standard_errors(self) -> float:
        """By how many standard errors the sum of squares (chi-square under the claim) is off; 0 before any value."""
        return (self._squares - self.values) / math.sqrt(2 * self.values) if self.values else 0.0

    def finding(self) -> Report | None:
        """Return what the ledger should say of the steps so far; None where none was watched.

        It is a function of noise and of the number of steps. To a tenth of a standard error the sums that were taken
        away leave no trace in it.
        """
        if not self._watched:
            return None
        return {
            "steps_watched": self._watched,
            "standard_errors": round(self.standard_errors, 1),
            "verdict": self.verdict,
        }

    def finding_due(self) -> Report | None:
        """Return the finding after 16 steps and each time their number has doubled, otherwise None."""
        if self._watched < self._next_note:
            return None
        self._next_note = 2 * self._watched
        return self.finding()

    def before(self, sums: Sequence[Tensor]) -> dict[int, Tensor]:
        """Take a sample of one of the sums, another one in every step; of all where noise has to be whitened."""
        self._steps += 1
        if not sums:
            return {}
        judged = self._steps % len(sums)
        others = () if self._strategy.bands == 1 else range(len(sums))
        return {place: _first(sums[place]).clone() for place in dict.fromkeys((judged, *others))}

    def after(self, sample: dict[int, Tensor], updates: Sequence[Tensor], std: float, divisor: float) -> None:
        """Compare the sample with the update that was made of it.

        Raises:
            NoiseMismatchError: the noise came before, or its level is not `std`.
        """
        if not sample or std == 0:
            return
        self._watched += 1
        noises = [self._fresh(place, before, updates[place], std, divisor) for place, before in sample.items()]
        if noises[0] is None:  # the one that is judged
            return
        standard = (noises[0] / std).cpu().numpy()
        if len(standard) >= _FINGERPRINT:
            self._require_new((standard[:_FINGERPRINT] * _GRID).round().astype("int32").tobytes())
        squares = float(standard @ standard)
        if squares < _least_squares(len(standard)):
            level = math.sqrt(squares / len(standard))
            self._mismatch("missing in a step", f"the noise of a step was {level:.1g} times what is charged")
        self.values, self._squares = self.values + len(standard), self._squares + squares  # both or, interrupted, none
        if self.values >= self._next_look:
            self._next_look = 2 * self.values
            self._require_level()

    def _fresh(self, place: int, before: Tensor, update: Tensor, std: float, divisor: float) -> Tensor | None:
        """Return the noise of a sample before it was correlated; None where a large sum's rounding is in it."""
        noise = _first(update).double() * divisor - before.double()
        if not float(before.abs().max()) <= _LARGEST_SUM * std:
            self._spoilt.add(place)
        if self._strategy.bands == 1:
            is_spoilt, self._spoilt = place in self._spoilt, set()
            return None if is_spoilt else noise
        whitened: Tensor = self._memories.setdefault(place, self._strategy.memory()).whitened(noise)
        return None if place in self._spoilt else whitened

    def _require_new(self, fingerprint: bytes) -> None:
        if fingerprint in self._seen:
            self._mismatch("drawn a second time", "noise was drawn that an earlier step had already: it would cancel")
        if len(self._seen) < _MOST_FINGERPRINTS:
            self._seen.add(fingerprint)

    def _require_level(self) -> None:
        if abs(self.standard_errors) > ALARM:
            self._mismatch(
                "not what is charged",
                f"the noise was measured as {self.ratio:.3g} times what is charged, over {self.values} values, so "
                f"epsilon is not the one in the ledger",
            )

    def _mismatch(self, verdict: str, what: str) -> None:
        self.verdict = verdict
        if self._alarms is Alarms.RAISED:
            raise NoiseMismatchError(
                what, cure="Do not release the model; report this with the version of hushgrad you use"
            )


@cache
def _least_squares(count: int) -> float:
    """Return what a sum of squares of `count` standard normal values is below with a probability under 1e-20.

    P(χ² < x) < (x/2)^(n/2) / Γ(n/2 + 1), whose integrand leaves out a factor below 1.
    """
    half = count / 2
    return 2 * math.exp((math.log(_RAREST) + math.lgamma(half + 1)) / half) if count else 0.0


def _first(values: Tensor) -> Tensor:
    return values.detach().reshape(-1)[:VALUES] if values.is_contiguous() else values.detach().flatten()[:VALUES]
