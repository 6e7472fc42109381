"""A monitor that stays on: now and then one example's clipped contribution is computed again, in float64.

On the first update and every hundredth after it one example of the first physical batch is taken, by its place. Its
norm over all parameters, times the weight with which it is about to be summed, must not be above the clip norm.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

from torch import Tensor

from hushgrad.errors import SensitivityMismatchError
from hushgrad.gradients.contribution import Contribution, Plan
from hushgrad.guards.monitoring.alarms import Alarms
from hushgrad.guards.monitoring.monitor import Report

EVERY = 100
# Above what rounding does to a norm, products with ten bits (TF32) included.
_TOLERANCE = 2e-3


class SensitivityMonitor:
    """Watches what single examples add to the sums of one session.

    Guarantee: of every hundredth update one example is checked, and one that adds more than the clip norm ends training
    with an error.
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

    def check(self, update: int, uses: Mapping[str, Contribution], weights_B: Tensor, clip_norm: float) -> None:
        """Check one example of a physical batch.

        Raises:
            SensitivityMismatchError: it would add more than `clip_norm`.
        """
        place = (update // EVERY) % weights_B.shape[0]
        squared = 0.0
        for part in uses.values():
            row = part.map_examples(lambda operand: _row(operand, place))
            squared += float(row.measure(Plan())[0])
        if not math.isfinite(squared):
            return  # it is left out of the sum
        if float(weights_B[place].double()) * math.sqrt(squared) > clip_norm * (1 + _TOLERANCE):
            self.verdict = "above the clip norm"
            if self._alarms is Alarms.NOTED:
                return
            raise SensitivityMismatchError(
                "an example would add more than the clip norm to the sum, so the noise is too small for it",
                cure="Do not release the model; report this with the version of hushgrad and the kinds of layers",
            )


def _row(operand: Tensor, place: int) -> Tensor:
    chosen = operand[place : place + 1]
    return chosen.double() if chosen.is_floating_point() else chosen
