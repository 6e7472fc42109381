"""A monitor that stays on: now and then what one example adds to a sum is formed by itself, and its norm is taken.

On the first update and every hundredth after it one example of the first physical batch is taken: of those that come
nearest to a limit one by its place, because an example far below it could not show an error. What is about to be added
for it in each group of parameters, formed as the sum forms it, must not be above the group's limit, by its norm in
float64. And the clip rule must give the first examples the factors that each of them gets alone, and the others
those that they get beside half of them.

That factor times norm is within the limits, by the norms as they were measured, is looked at in every step
(`gradients/clipped_sum.py`); here the measuring is looked at, too.
"""

from __future__ import annotations

import math

import torch

from hushgrad.clipping.bound import BoundRule
from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.clipped_sum import Weighed
from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.rounding import LEAST_WEIGHT, squared_norms
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.monitor import Report

EVERY = 100
# Above what rounding does to a contribution (1e-5), and to forming it alone.
_TOLERANCE = 2e-5
# Examples that come so near to a limit as the nearest one does are looked at in turn.
_NEAR = 0.99
# Examples whose factor is computed alone; and what the order of operations in a kernel may change in a factor.
_ALONE, _SAME = 8, 1e-5


class SensitivityMonitor:
    """Watches what single examples add to the sums of one session.

    Guarantee: of every hundredth update one example is checked, of those nearest to the clip norm, and one that adds
    more ends training with an error.
    Guarantee: a clip rule that gives an example another factor beside others than alone ends training with an error.
    """

    def __init__(self, alarms: Alarms = Alarms.RAISED) -> None:
        self.verdict = "within the clip norm"
        self._alarms = alarms

    @staticmethod
    def is_due(update: int) -> bool:
        """Whether an example of this update, counted from 0, is looked at."""
        return update % EVERY == 0

    def finding(self, updates: int) -> Report:
        """Return what the ledger should say after so many updates: a function of their number and of the verdict."""
        return {"steps_sampled": math.ceil(updates / EVERY), "verdict": self.verdict}

    def check(self, update: int, weighed: Weighed, clip: BoundRule) -> None:
        """Check one example of a physical batch, and the factors of a few.

        Raises:
            SensitivityMismatchError: it would add more than a limit, or a factor depends on other examples.
        """
        look = self.look(update, weighed, clip)
        if look is not None:
            for group, parts in enumerate(weighed.members):
                for part in parts.values():
                    look.add(group, part)
            self.close(look)

    def look(self, update: int, weighed: Weighed, clip: BoundRule) -> Look | None:
        """Check the factors of a few examples, and begin to look at one; None where all are summed in float64.

        Raises:
            SensitivityMismatchError: a factor depends on other examples.
        """
        place = _place(update // EVERY, weighed, clip)
        self._require_own_factors(weighed, clip)
        return None if place is None else Look(place, weighed, clip)

    def close(self, look: Look) -> None:
        """All that one example adds was shown to the look.

        Raises:
            SensitivityMismatchError: it would add more than a limit.
        """
        if not look.is_within():
            self.exceeded(
                SensitivityMismatchError(
                    "an example would add more than the clip norm to the sum, so the noise is too small for it",
                    cure="Report this with the version of hushgrad and the kinds of layers, and do not release the "
                    "model",
                )
            )

    def _require_own_factors(self, weighed: Weighed, clip: BoundRule) -> None:
        roots_GB = weighed.roots
        few, rest = min(_ALONE, roots_GB.shape[1]), max(0, roots_GB.shape[1] - _ALONE)
        # Each of the first by itself; of the others one half beside the other shows what they have from one another.
        parts = torch.split(
            roots_GB, [*[1] * few, *([rest // 2, rest - rest // 2] if rest > 1 else [rest] * bool(rest))], 1
        )
        apart_GB = torch.cat([clip.factors(part * weighed.scale) for part in parts], 1)
        alike = torch.isclose(apart_GB * weighed.scale, weighed.weights, rtol=_SAME, atol=0.0)
        if not (alike | ~torch.isfinite(roots_GB)).all():
            self.verdict = "factors depend on other examples"
            self._alarm(
                SensitivityMismatchError(
                    f"the clip rule {type(clip.rule).__name__} gives an example another factor beside others than "
                    f"alone, so one example changes what all others add",
                    cure="Compute each column of factors() from that column of the norms and the rule's constants "
                    "only; do not release the model",
                )
            )

    def exceeded(self, excess: SensitivityMismatchError) -> None:
        """Take note that an example would add more than the clip norm, and raise `excess`."""
        self.verdict = "above the clip norm"
        self._alarm(excess)

    def _alarm(self, error: SensitivityMismatchError) -> None:
        if self._alarms is Alarms.RAISED:
            raise error


class Look:
    """What one example of a physical batch adds to the sums, formed by itself as the sums form it."""

    def __init__(self, place: int, weighed: Weighed, clip: BoundRule) -> None:
        """Look at the example at `place`."""
        self._place, self._weighed, self._limits = place, weighed, clip.limits
        self._squares = [0.0] * len(clip.limits)

    def add(self, group: int, part: Contribution) -> None:
        """It adds this to the sum of a parameter of a group."""
        weights_1 = self._weighed.weights[group, self._place : self._place + 1]
        added = part.alone(self._place).weighted_sum(weights_1)
        values = added.coalesce().values() if added.is_sparse else added
        self._squares[group] += float(squared_norms(values.reshape(-1)))

    def is_within(self) -> bool:
        """Return whether the norm of all that was added is at most the limit of each group."""
        squares = self._weighed.roots.new_tensor(self._squares, dtype=torch.float64)
        norms = self._weighed.across.added(squares).sqrt().tolist()
        return all(norm <= limit * (1 + _TOLERANCE) for norm, limit in zip(norms, self._limits, strict=True))


def _place(turn: int, weighed: Weighed, clip: BoundRule) -> int | None:
    """Return whose turn it is among the examples that come nearest to a limit; None if all are summed in float64."""
    limits_G1 = weighed.roots.new_tensor(clip.limits).unsqueeze(1)
    shares_B = (weighed.weights.abs() * weighed.roots / limits_G1).amax(0)
    shares_B = shares_B.masked_fill((weighed.weights.abs() < LEAST_WEIGHT).any(0), torch.nan)
    shares = [(share if math.isfinite(share) else -1.0) for share in shares_B.tolist()]
    nearest = max(shares)
    if nearest < 0:
        return None
    near = [place for place, share in enumerate(shares) if share >= _NEAR * nearest]
    return near[turn % len(near)]
