"""Canaries in the data: half of them take part, and what a model makes of them bounds ε from below."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.accounting import (
    DisjointPass,
    FixedOrder,
    FixedSizeSampled,
    PoissonSampled,
    Release,
    TruncatedPoisson,
    epsilon,
)
from hushgrad.checks.auditing.audit import recomputed
from hushgrad.checks.auditing.input_canaries import InputCanaries, input_canaries
from hushgrad.errors import InvalidArgumentError

COUNT, CLASSES = 300, 4
DATA = TensorDataset(torch.randn(COUNT, 40), torch.randint(0, CLASSES, (COUNT,)))


def odd(seed: int = 3) -> InputCanaries:
    return input_canaries(DATA, 100, classes=CLASSES, seed=seed)


def test_canaries_are_mislabelled_records_of_which_those_take_part_that_a_coin_chose() -> None:
    found = odd()
    assert len(found.canaries) == 100  # type: ignore[arg-type]
    assert len(found.training) == 200 + int(found.members.sum())  # type: ignore[arg-type]
    own = {tuple(x.tolist()): int(y) for x, y in DATA}
    for index in range(100):
        x, y = found.canaries[index]
        assert 0 <= int(y) < CLASSES
        assert own[tuple(x.tolist())] != int(y)
    taken = [found.training[200 + at][0] for at in range(int(found.members.sum()))]
    kept = [found.canaries[at][0] for at in np.flatnonzero(found.members)]
    assert all(torch.equal(a, b) for a, b in zip(taken, kept, strict=True))
    assert 25 < found.members.sum() < 75


def test_another_seed_is_another_choice() -> None:
    assert (odd(1).members != odd(2).members).any()


def trained(canaries: InputCanaries) -> tuple[Any, nn.Module]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(40, 128), nn.Tanh(), nn.Linear(128, CLASSES))
    engine = PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(canaries.training, batch_size=len(canaries.training)),  # type: ignore[arg-type]
        noise_multiplier=2.0,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(10):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    charged = engine.session.charged
    engine.session.close()
    return charged, model


def losses(model: nn.Module, canaries: InputCanaries) -> torch.Tensor:
    x, y = next(iter(DataLoader(canaries.canaries, batch_size=100)))
    with torch.no_grad():
        return nn.functional.cross_entropy(model(x), y, reduction="none")


@pytest.mark.statistical
def test_a_private_training_is_not_contradicted() -> None:
    """At confidence 0.999: false-alarm probability 3e-3, at fixed seeds of the canaries."""
    found = odd()
    charged, model = trained(found)
    report = found.report(losses(model, found), charged, delta=1e-5, confidence=0.999)
    assert report.passed, str(report)


def test_losses_that_tell_who_took_part_contradict_a_small_claim() -> None:
    found = odd()
    low = torch.linspace(0, 1, 100)
    told = torch.where(torch.from_numpy(found.members), low, low + 2)
    claim = [(PoissonSampled(0.5, 20.0), 60)]  # ε = 0.7
    report = found.report(told, claim, delta=1e-5)
    assert not report.passed
    assert {bound.method for bound in report.bounds} == {"one run", "one run, f-DP", "one run, own curve"}
    assert all(bound.epsilon > 0.75 for bound in report.bounds)
    before = torch.where(torch.from_numpy(found.members), 0.0, 2.0) + low
    assert found.report(told, claim, delta=1e-5, before=before).passed


@pytest.mark.parametrize("change", [{"count": 19}, {"count": COUNT + 1}, {"classes": 1}, {"seed": -1}])
def test_numbers_out_of_range_are_refused(change: dict[str, int]) -> None:
    given = {"count": 50, "classes": CLASSES, "seed": 0, **change}
    with pytest.raises(InvalidArgumentError):
        input_canaries(DATA, given["count"], classes=given["classes"], seed=given["seed"])


def test_a_claim_under_a_relation_of_which_no_canary_is_an_instance_is_refused() -> None:
    """A canary that takes no part is absent: neither zeroed out nor replaced."""
    found, losses_C = odd(), torch.zeros(100)
    for event in (DisjointPass(1.0, 0), FixedSizeSampled(10, 200, 1.0), FixedOrder(1.0, 4, 0)):
        with pytest.raises(InvalidArgumentError, match="takes no part is absent"):
            found.report(losses_C, [(event, 4)], delta=1e-5)


def test_what_is_claimed_is_the_epsilon_of_the_run_under_add_remove_one() -> None:
    """Of draws that may be cut not that of zero-out, and of an account that begins with a statistic that of all."""
    for charged in (
        [(TruncatedPoisson(0.1, 1.0, 200, 40), 10)],
        [(Release(3.0, "a count of records"), 1), (PoissonSampled(0.1, 1.0), 10)],
        [],
    ):
        report = odd().report(torch.linspace(0, 1, 100), charged, delta=1e-5)
        assert set(report.claimed.values()) == {epsilon(charged, 1e-5)}
        if charged:
            assert recomputed(report.as_json()).claimed == report.claimed


@pytest.mark.parametrize("wrong", [torch.zeros(99), torch.full((100,), float("nan")), "losses", torch.zeros(100, 2)])
def test_losses_that_are_no_losses_are_refused(wrong: Any) -> None:
    charged = [(PoissonSampled(0.1, 1.0), 5)]
    with pytest.raises(InvalidArgumentError, match="losses"):
        odd().report(wrong, charged, delta=1e-5)
    with pytest.raises(InvalidArgumentError, match="before"):
        odd().report(torch.zeros(100), charged, delta=1e-5, before=wrong)
