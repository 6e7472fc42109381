"""What whole runs show: their ledger, and what another record changes in them."""

from __future__ import annotations

from typing import Any

import pytest
from verified_training import SIGMA, B, N, linear, parts_of, verified

from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.mechanism import DPSGD


@pytest.mark.statistical
@pytest.mark.parametrize("event", [PoissonSampled(B / N, 1.05 * SIGMA), PoissonSampled(0.5 * B / N, SIGMA)])
def test_an_event_that_is_not_what_runs_is_found(monkeypatch: pytest.MonkeyPatch, event: PoissonSampled) -> None:
    monkeypatch.setattr(DPSGD, "event", lambda self, pass_index=0: event)
    assert parts_of(verified(resolution=0.02)) == {"ledger"}


def test_a_learning_rate_that_follows_the_loss_is_found() -> None:
    def follows(model: Any, optimizer: Any, loader: Any, criterion: Any) -> None:
        for inputs, target in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), target)
            loss.backward()
            optimizer.step()
            if loss.item() > 100:
                optimizer.param_groups[0]["lr"] *= 0.5

    verdict = verified(linear(), loop=follows)
    assert parts_of(verdict) == {"replay"}
    assert verdict.causes[0].code == "control-flow-depends-on-data"


def test_training_that_stops_by_its_loss_is_found() -> None:
    def stops(model: Any, optimizer: Any, loader: Any, criterion: Any) -> None:
        for inputs, target in loader:
            optimizer.zero_grad()
            loss = criterion(model(inputs), target)
            if loss.item() > 100:
                return
            loss.backward()
            optimizer.step()

    verdict = verified(linear(), loop=stops)
    assert parts_of(verdict) == {"replay"}
