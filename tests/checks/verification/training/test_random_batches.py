"""`hushgrad.verify` of training over random batches (balls in bins)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
from verified_training import B, N, claim, linear, verified

from hushgrad.accounting import RandomAllocation
from hushgrad.sampling import BallsInBinsSampling


@dataclass(frozen=True)
class Cheap(BallsInBinsSampling):
    """The planted bug: a pass is charged as if it had ten times as many steps."""

    def event(self, noise_multiplier: float, index: int = 0) -> RandomAllocation:
        return RandomAllocation(10 * self.bins, noise_multiplier, index)


@pytest.mark.slow
@pytest.mark.statistical
def test_training_over_random_batches_passes() -> None:
    """Secret keys; false alarm 1e-6."""
    verdict = verified(linear(), replace(claim(), sampling=BallsInBinsSampling(N // B)))
    assert verdict.passed
    assert {"sampling-each-once", "sampling-neighbours"} <= {check.code for check in verdict.checks}


@pytest.mark.slow
@pytest.mark.statistical
def test_a_charge_of_more_bins_than_there_are_is_found() -> None:
    verdict = verified(linear(), replace(claim(), sampling=Cheap(N // B)))
    assert not verdict.passed
    assert "ledger-rate" in {check.code for check in verdict.failed}
