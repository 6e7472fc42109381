"""What a batch ran is examined whole or by a few examples, its cost is counted, and what showed nothing stays due."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext

import pytest
import torch
from torch import Tensor, nn

from hushgrad.capture.scope import Scope
from hushgrad.capture.uses import UsePool
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.batch_probe import BatchProbe
from hushgrad.guards.probing.due_calls import DueCalls
from hushgrad.guards.probing.evaluations import Evaluations
from hushgrad.guards.probing.looks import Looks
from hushgrad.guards.probing.loss_programs import LossPrograms
from hushgrad.guards.probing.on_trust import OnTrust
from hushgrad.guards.probing.probed import Probed
from hushgrad.guards.probing.row_order import RowOrder
from hushgrad.guards.probing.scalar_loss import ScalarLoss

B = 6


class Centred(nn.Module):
    """Takes the mean of the batch from each example, once it is told to."""

    is_on = False

    def forward(self, x: Tensor) -> Tensor:
        return x - x.mean(0) if self.is_on else x


class Batches:
    """Batches of one model, examined as a probe does it."""

    def __init__(self) -> None:
        self.model = nn.Sequential(nn.Linear(3, 3), Centred())
        self.scope = Scope(self.model, UsePool())
        self.looks = Looks(None)
        self.calls = DueCalls(self.model, list(self.model.parameters()), self.looks)
        programs = LossPrograms("mean", None)
        scalar_loss = ScalarLoss(self.model, "mean", lambda: True, nullcontext, programs)
        evaluations = Evaluations(self.looks, lambda: True)
        self.batch = BatchProbe(
            self.calls, evaluations, self.looks, OnTrust(scalar_loss, programs, RowOrder()), self._probed
        )

    def _probed(self) -> Probed:
        found = Probed(self.model, self.scope, dict(self.model.named_parameters()), "mean")
        found.axes, found.novelty = self.calls.axes, self.calls.novelty
        return found

    def run(self, x: Tensor) -> None:
        pending = self.calls.begun(self.model, (x,), {}, frozenset())
        self.scope.paused = True
        output = self.model(x)
        self.scope.paused = False
        if pending is not None:
            pending.call.returned(output, False, lambda: True)
            pending.call.reached.add(())  # by a backward
        self.batch.examine(self.calls.whole(len(x)), [], len(x))
        self.batch.look(self.calls.in_part(len(x)), len(x))
        self.calls.forget()


@pytest.fixture
def batches() -> Iterator[Batches]:
    made = Batches()
    yield made
    made.scope.detach()


def test_a_call_is_examined_once_and_its_cost_is_counted(batches: Batches) -> None:
    for _ in range(3):
        batches.run(torch.randn(B, 3))
    report = batches.batch.report
    assert (report.calls, report.examined, report.looks, report.notes) == (1, True, 0, ())
    assert report.forwards > 0
    assert report.look_forwards == 0


def test_a_look_counts_by_itself_and_finds_what_began_after_the_first_batch(batches: Batches) -> None:
    batches.run(torch.randn(B, 3))
    before = batches.batch.report
    batches.looks.wanted = True
    batches.run(torch.randn(B, 3))
    report = batches.batch.report
    assert (report.calls, report.looks) == (before.calls, 1)
    assert report.look_forwards > 0
    batches.model[1].is_on = True
    with pytest.raises(CrossSampleLeakError):
        batches.run(torch.randn(B, 3))


@pytest.mark.parametrize("why", ["outputs that are not finite", "losses whose graph could not be asked"])
def test_a_batch_that_showed_nothing_leaves_the_model_due(batches: Batches, why: str) -> None:
    bias = batches.model[0].bias.detach()
    batches.batch.is_told = why == "outputs that are not finite"
    bias.fill_(float("nan") if batches.batch.is_told else 1.0)
    batches.run(torch.randn(B, 3))
    assert not batches.batch.report.examined
    batches.batch.is_told = True
    bias.fill_(1.0)
    batches.run(torch.randn(B, 3))
    assert batches.batch.report.examined
    assert batches.batch.report.calls == 2
