"""An accountant of somebody else's: one file, registered by name, and held against what is known to be spent."""

from __future__ import annotations

import math
from collections.abc import Iterator

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad.accounting import (
    Accountant,
    DisjointPass,
    EpsilonBounds,
    Event,
    FixedSizeSampled,
    PoissonSampled,
    TruncatedPoisson,
    epsilon,
    guarantee,
    register_accountant,
)
from hushgrad.accounting import accountants as table
from hushgrad.accounting.composition import NormalForm
from hushgrad.errors import AccountingError, InvalidArgumentError

EVENTS = [PoissonSampled(0.01, 1.0), DisjointPass(2.0, 0), TruncatedPoisson(0.1, 1.0, 100, 60)]


def without_amplification(form: NormalForm, delta: float) -> EpsilonBounds:
    """zCDP of all steps as if no example had been drawn by chance (Bun & Steinke 2016, Prop. 1.3)."""
    rho = form.gaussian_precision / 2 + sum(count / (2 * noise**2) for _, noise, count in form.sampled)
    return EpsilonBounds(0.0, rho + 2 * math.sqrt(rho * math.log(1 / delta)))


def too_small(form: NormalForm, delta: float) -> EpsilonBounds:
    """A planted bug: it takes the noise multiplier for twice what it is."""
    rho = (form.gaussian_precision + sum((q / n) ** 2 * count for q, n, count in form.sampled)) / 8
    return EpsilonBounds(0.0, rho + math.sqrt(rho * math.log(1 / delta)))


@pytest.fixture
def zcdp() -> Iterator[str]:
    known = dict(table._KNOWN)
    register_accountant(Accountant("zcdp", without_amplification, 0.0, False, False, "zCDP, without amplification"))
    register_accountant(Accountant("hopeful", too_small, 0.0, False, False, "a wrong one"))
    yield "zcdp"
    table._KNOWN.clear()
    table._KNOWN.update(known)


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-9])
@pytest.mark.parametrize(
    "event", [PoissonSampled(0.01, 1.0), DisjointPass(2.0, 0), TruncatedPoisson(0.1, 1.0, 100, 20)]
)
def test_a_registered_accountant_is_an_upper_bound_of_the_default_one(zcdp: str, event: object, delta: float) -> None:
    composition = [(event, 20)]
    assert epsilon(composition, delta, zcdp) >= epsilon(composition, delta) * (1 - 1e-9)


@pytest.mark.parametrize(
    "event", [PoissonSampled(0.01, 1.0), DisjointPass(2.0, 0), TruncatedPoisson(0.1, 1.0, 100, 90)]
)
def test_an_epsilon_below_what_is_known_to_be_spent_is_refused(zcdp: str, event: object) -> None:
    with pytest.raises(AccountingError, match="smaller epsilon than is known to be spent"):
        epsilon([(event, 20)], 1e-5, "hopeful")


def test_training_is_budgeted_charged_and_reported_by_a_registered_accountant(zcdp: str) -> None:
    model = nn.Linear(3, 2)
    data = TensorDataset(torch.randn(40, 3), torch.randn(40, 2))
    engine = hushgrad.PrivacyEngine(accountant=zcdp)
    _, optimizer, loader = engine.make_private_with_epsilon(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=8),
        target_epsilon=4.0,
        target_delta=1e-5,
        epochs=2,
        max_grad_norm=1.0,
    )
    criterion = engine.per_example(nn.MSELoss())
    for _ in range(2):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()
    assert 3.9 < engine.get_epsilon(1e-5) <= 4.0
    found = engine.guarantee(1e-5)
    assert "third-party accountant" in {condition.name for condition in found.conditions}
    assert "zcdp" in str(found)


@pytest.mark.slow
def test_training_with_a_registered_accountant_is_verified(zcdp: str) -> None:
    model = nn.Linear(3, 2)
    loader = DataLoader(TensorDataset(torch.randn(40, 3), torch.randn(40, 2)), batch_size=8)
    engine = hushgrad.PrivacyEngine(accountant=zcdp)
    engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=loader,
        noise_multiplier=2.0,
        max_grad_norm=1.0,
    )
    assert hushgrad.verify(model, loader, nn.MSELoss(), engine).passed


def test_our_accountants_are_nobody_elses(zcdp: str) -> None:
    for name in table.OWN_ACCOUNTANTS:
        if name != "pld":
            assert not guarantee([(DisjointPass(2.0, 0), 1)], 1e-5, name).conditions


def test_a_name_that_is_taken_and_a_thing_that_is_no_accountant_are_refused(zcdp: str) -> None:
    with pytest.raises(InvalidArgumentError, match="registered already"):
        register_accountant(Accountant("zcdp", without_amplification, 0.0, False, False, "again"))
    with pytest.raises(InvalidArgumentError, match="registered already"):
        register_accountant(Accountant("rdp", without_amplification, 0.0, False, False, "ours"))
    with pytest.raises(InvalidArgumentError, match="must be an Accountant"):
        register_accountant(without_amplification)  # type: ignore[arg-type]


def test_steps_of_a_fixed_size_are_taken_at_its_word(zcdp: str) -> None:
    """Of these the default accountant knows no lower bound."""
    assert epsilon([(FixedSizeSampled(10, 100, 2.0), 5)], 1e-5, "hopeful") >= 0


@pytest.mark.parametrize(
    "changes",
    [
        {"name": ""},
        {"name": "red\x1b[31m"},
        {"name": 5},
        {"name": ["a"]},
        {"description": None},
        {"description": "two\nlines"},
        {"bounds": 5},
        {"smallest_delta": math.nan},
        {"smallest_delta": None},
        {"smallest_delta": 1.0},
        {"states_error": "no"},
        {"exact_without_sampling": 1},
    ],
    ids=str,
)
def test_an_accountant_with_a_field_that_means_nothing_is_not_registered(changes: dict[str, object]) -> None:
    fields = {
        "name": "odd",
        "bounds": without_amplification,
        "smallest_delta": 0.0,
        "exact_without_sampling": False,
        "states_error": False,
        "description": "odd",
    }
    with pytest.raises(InvalidArgumentError, match=next(iter(changes))):
        register_accountant(Accountant(**{**fields, **changes}))  # type: ignore[arg-type]
    assert "odd" not in table.ACCOUNTANTS


@pytest.mark.parametrize(
    "found",
    [5.0, None, (0.0, 5.0), EpsilonBounds(0.0, "5"), EpsilonBounds(0.0, torch.tensor(5.0)), EpsilonBounds(9.0, 5.0)],  # type: ignore[arg-type]
    ids=repr,
)
@pytest.mark.parametrize("event", EVENTS, ids=lambda event: type(event).__name__)
def test_what_is_no_pair_of_bounds_is_refused(zcdp: str, event: Event, found: object) -> None:
    register_accountant(Accountant("odd", lambda form, delta: found, 0.0, False, True, "odd"))  # type: ignore[arg-type,return-value]
    with pytest.raises(AccountingError, match=r"accountant 'odd'.*EpsilonBounds\(lower, upper\)"):
        epsilon([(event, 3)], 1e-5, "odd")
