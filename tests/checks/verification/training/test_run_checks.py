"""What whole runs show: their ledger, and what another record changes in them."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import replicas
from verified_training import SIGMA, B, N, linear, parts_of, verified

from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.checks.verification.checks.noise import read_noise
from hushgrad.checks.verification.training.copies import RunTrace, TrainingReplica, ordinary_loop, without_session
from hushgrad.checks.verification.training.run_checks import ledger_checks, replay_checks, run_causes
from hushgrad.checks.verification.verdict import failed_codes
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


def trained() -> tuple[TrainingReplica, RunTrace]:
    source = replicas.replica()
    return source, source.train(without_session(ordinary_loop), seed=None, updates=3)


def failed_of(source: TrainingReplica, run: RunTrace, multiplier: float = replicas.SIGMA) -> set[str]:
    found = np.random.default_rng(1).standard_normal((10, 50_000)).astype(np.float32)
    noise = read_noise([{"all": row} for row in found], 1.0, 1e-6)
    return failed_codes(ledger_checks(source, run, multiplier, noise, None, 1e-6))


def test_a_ledger_that_says_what_ran_passes() -> None:
    assert failed_of(*trained()) == set()


def test_a_ledger_is_compared_with_the_noise_and_the_updates_that_were_measured_and_with_what_was_claimed() -> None:
    source, run = trained()
    assert failed_of(source, run, 0.9 * replicas.SIGMA) == {"ledger-multiplier"}
    assert failed_of(source, replace(run, updates=4)) == {"ledger-charged-before"}
    assert failed_of(source, replace(run, charged_before=False)) == {"ledger-charged-before"}
    wrong = replace(source, mechanism=replace(source.mechanism, expected_batch_size=13))
    assert failed_of(wrong, run) == {"ledger-contract"}
    fixed = source.train(without_session(ordinary_loop), seed=1, updates=3)
    assert failed_of(source, fixed) == {"ledger-contract"}  # its key is known


def test_what_decides_by_values_is_told_from_what_decides_by_counts() -> None:
    def follows(model: Any, optimizer: Any, loader: Any, criterion: Any) -> None:
        for x, y in loader:
            loss = criterion(model(x), y)
            loss.backward()
            optimizer.step()
            if by_value and loss.item() > 10:
                optimizer.param_groups[0]["lr"] *= 0.5

    for by_value in (False, True):
        checks = replay_checks(replicas.replica(), without_session(follows), replicas.C / replicas.B)
        assert failed_codes(checks) == ({"replay-steps"} if by_value else set())
        assert [cause.code for cause in run_causes(checks)] == (["control-flow-depends-on-data"] if by_value else [])
