"""`hushgrad.verify` of training that draws whole users: all of a user's records are altered, left out and drawn."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pytest
import torch
from replicas import B, C, N, flat, replica
from torch import nn
from verified_training import B as SIZE
from verified_training import N as RECORDS
from verified_training import claim, linear, mlp, verified

from hushgrad import UserSampling
from hushgrad.accounting import PoissonSampled
from hushgrad.checks.verification.training.draws import draws_of_training
from hushgrad.checks.verification.training.run_checks import _Neighbour
from hushgrad.checks.verification.training.session_update import SessionUpdate
from hushgrad.checks.verification.update.groups import WholeUsers, take
from hushgrad.sampling.loader import _Planner

IDS = [i % 17 for i in range(N)]
MANY = [i * i % 101 for i in range(RECORDS)]


def sampling(ids: list[int], expected: int, kind: type[UserSampling] = UserSampling, **more: Any) -> UserSampling:
    most = max(ids.count(user) for user in set(ids))
    return kind(
        rate=expected / 150, users=ids, examples_per_user=most, population=150, told_by="account", **more
    )  # fmt: skip


def small(**more: Any) -> Any:
    return replica(sampling=sampling(IDS, B, **more))


@pytest.mark.parametrize("gradient", ["mean", "sum"])
def test_an_example_is_a_user_with_all_records(gradient: str) -> None:
    run = small(gradient=gradient)
    assert run.examples == 17
    assert run.records_of(3) == [3, 20, 37, 54]
    assert run.example_of(37) == 3
    item = run.item([3, 12])
    assert isinstance(item, WholeUsers)
    assert item.sizes == (4, 3)
    assert item.owners == [0, 0, 0, 0, 1, 1, 1]
    assert torch.equal(item.item[0][4:], take(item, [1]).item[0])
    first = take(item, [1, 0], 2.0)
    assert first.sizes == (3, 4)
    assert torch.equal(first.item[0][:3], 2 * item.item[0][4:])
    assert torch.equal(first.item[0][3:], item.item[0][:4])
    update = SessionUpdate(run)
    base = flat(update.call(take(item, []), 5)).double()
    alone = flat(update.call(take(item, [0]), 5)).double() - base
    gradient_of = flat(run.gradients_of(3)).double()
    factor = min(1.0, C / float(gradient_of.norm())) / B
    torch.testing.assert_close(alone, factor * gradient_of, rtol=1e-4, atol=1e-7)


def test_all_records_of_a_user_are_exchanged() -> None:
    other = _Neighbour([(torch.ones(2), 1)] * 5, [1, 3], 10.0)
    assert [float(other[i][0][0]) for i in range(5)] == [1, 10, 1, 10, 1]


def test_draws_are_read_as_those_of_users() -> None:
    """False alarm 1e-6; the keys are secret."""
    found, checks = draws_of_training(small(), 0.3, 1e-6)
    assert found is not None
    assert all(check.passed for check in checks)
    assert "sampling-whole-users" in {check.code for check in checks}
    assert abs(found.rate - B / 150) < 0.02


def test_planted_draws_of_parts_of_users_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """The loader's own refusal taken away: each draw without its first record."""

    def parts(planner: _Planner, indices: tuple[int, ...]) -> tuple[tuple[int, ...], list[int]]:
        assert planner._owners is not None
        kept = indices[1:]
        return kept, planner._owners.codes[np.array(kept, np.int64)].tolist()

    monkeypatch.setattr(_Planner, "_by_user", parts)
    _, checks = draws_of_training(small(), 0.3, 1e-6)
    assert "sampling-whole-users" in {check.code for check in checks if not check.passed}


@dataclass(frozen=True, kw_only=True)
class Cheap(UserSampling):
    """The planted bug: charged with the rate of records among many more."""

    def event(self, noise_multiplier: float, index: int = 0) -> PoissonSampled:
        return PoissonSampled(self.rate / 4, noise_multiplier)


@pytest.mark.slow
@pytest.mark.statistical
@pytest.mark.parametrize("gradient", ["mean", "sum"])
def test_training_of_whole_users_passes(gradient: str) -> None:
    """Secret keys; false alarm 1e-6."""
    verdict = verified(mlp(), replace(claim(), sampling=sampling(MANY, SIZE, gradient=gradient)))
    assert verdict.passed, verdict.to_text()
    assert {"sampling-whole-users", "sensitivity-bound", "ledger-rate"} <= {check.code for check in verdict.checks}


@pytest.mark.slow
@pytest.mark.statistical
def test_planted_a_charge_of_another_rate_is_found() -> None:
    verdict = verified(linear(), replace(claim(), sampling=sampling(MANY, SIZE, Cheap)))
    assert "ledger-rate" in {check.code for check in verdict.failed}


@pytest.mark.slow
@pytest.mark.statistical
def test_planted_records_that_are_clipped_one_by_one_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    """A user of k records moves the sum by up to k times the clip norm."""
    monkeypatch.setattr("hushgrad.session.open_batch.of_users", lambda uses, owners, averages: (uses, len(owners)))
    model: nn.Module = linear()
    verdict = verified(model, replace(claim(), sampling=sampling(MANY, SIZE)))
    assert "sensitivity-bound" in {check.code for check in verdict.failed}
