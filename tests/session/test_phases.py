"""Trainings in phases: one account through sessions with other batches, clip rules and data, each opened by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import (
    DPSGD,
    Budget,
    DisjointBatches,
    FlatClipping,
    PoissonSampling,
    PrivacyEngine,
    PrivacyFilter,
    Session,
    TruncatedPoissonSampling,
    privatize,
)
from hushgrad.accounting import DisjointPass, PoissonSampled, epsilon, read_ledger
from hushgrad.errors import (
    AccountingError,
    BudgetExhaustedError,
    ContractChangedError,
    InvalidArgumentError,
    LedgerError,
    ProtocolError,
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "ledger.jsonl"


def plan(rate: float = 0.1, **changes: Any) -> DPSGD:
    settings: dict[str, Any] = {"noise_multiplier": 1.5, "clipping": FlatClipping(1.0)} | changes
    return DPSGD(**{"sampling": PoissonSampling(rate), "expected_batch_size": 4.0, **settings})


def train(mechanism: DPSGD, steps: int, model: nn.Module | None = None, **options: Any) -> Session:
    """Take so many steps on empty draws, at least as many as fit; return the closed session."""
    model = model or nn.Linear(2, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    session = privatize(model, optimizer, mechanism, **options)
    try:
        for _ in range(steps):
            session.backward(torch.zeros(0))
            optimizer.step()
    finally:
        session.close()
    return session


def private(engine: PrivacyEngine, count: int, batch_size: int, model: nn.Module, **options: Any) -> Any:
    data = TensorDataset(torch.randn(count, 2), torch.randn(count, 1))
    return engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(data, batch_size=batch_size),
        **options,
    )


def test_other_batches_clip_norms_and_data_are_one_account_of_one_engine(path: Path) -> None:
    engine, model = PrivacyEngine(ledger=path), nn.Linear(2, 1)
    for phase, count, size, clip in (("warm-up", 40, 8, 1.0), ("fine-tune", 90, 10, 0.3)):
        _, optimizer, loader = private(
            engine, count, size, model, noise_multiplier=1.2, max_grad_norm=clip, phase=phase
        )
        for x, y in loader:
            engine.session.backward((model(x) - y).square().sum(1))
            optimizer.step()
        engine.session.close()
    expected = epsilon([(PoissonSampled(0.2, 1.2), 5), (PoissonSampled(10 / 90, 1.2), 9)], 1e-5)
    assert engine.get_epsilon(1e-5) == PrivacyEngine(ledger=path).get_epsilon(1e-5) == expected
    names = [condition.name for condition in engine.guarantee(1e-5).conditions]
    assert "phases fixed beforehand" in names
    assert "uncounted steps" not in names


def test_without_a_name_or_a_ledger_no_phase_begins(path: Path) -> None:
    train(plan(), 2, ledger=path, phase="warm-up")
    with pytest.raises(ContractChangedError, match="no phase is named"):
        train(plan(0.2), 1, ledger=path)
    with pytest.raises(InvalidArgumentError, match="no ledger to hold it"):
        train(plan(), 1, phase="warm-up")
    engine = PrivacyEngine()
    private(engine, 40, 8, nn.Linear(2, 1), noise_multiplier=1.0, max_grad_norm=1.0)
    engine.session.close()
    with pytest.raises(ProtocolError, match="same ledger path"):
        private(engine, 40, 8, nn.Linear(2, 1), noise_multiplier=1.0, max_grad_norm=1.0)


def test_two_engines_have_one_ledger_one_after_the_other(path: Path) -> None:
    first = PrivacyEngine(ledger=path)
    private(first, 40, 8, nn.Linear(2, 1), noise_multiplier=1.0, max_grad_norm=1.0, phase="one")
    second = PrivacyEngine(ledger=path)
    with pytest.raises(LedgerError, match="in use"):
        private(second, 40, 8, nn.Linear(2, 1), noise_multiplier=1.0, max_grad_norm=1.0, phase="two")
    first.session.close()
    private(second, 40, 8, nn.Linear(2, 1), noise_multiplier=1.0, max_grad_norm=1.0, phase="two")
    second.session.close()


def test_planned_steps_are_those_of_their_phase_also_after_a_crash(path: Path) -> None:
    train(plan(), 5, ledger=path, phase="warm-up")
    train(plan(steps=3), 2, ledger=path, phase="fine-tune")
    with pytest.raises(BudgetExhaustedError):
        train(plan(steps=3), 2, ledger=path, phase="fine-tune")
    assert read_ledger(path).steps == 8


def test_a_schedule_begins_with_its_phase(path: Path) -> None:
    train(plan(), 2, ledger=path, phase="warm-up")
    train(plan(noise_schedule=(1.0, 2.0)), 2, ledger=path, phase="cool-down", lease=4)
    with pytest.raises(BudgetExhaustedError):
        train(plan(noise_schedule=(1.0, 2.0)), 1, ledger=path, phase="cool-down")
    assert read_ledger(path).events == [(PoissonSampled(0.1, 1.5), 3), (PoissonSampled(0.1, 3.0), 1)]


def test_a_budget_is_of_the_whole_account_and_the_same_plan_in_two_phases_counts_twice(path: Path) -> None:
    budget = Budget(2.0, 1e-5)
    most = budget.most(lambda count: [(PoissonSampled(0.1, 1.5), count)])
    assert most > 10
    train(plan(), 5, ledger=path, phase="one")
    with pytest.raises(BudgetExhaustedError):
        train(plan(), most, ledger=path, phase="two", budget=budget)
    assert read_ledger(path).steps == most


def test_a_target_counts_what_earlier_phases_spent_also_after_a_crash(path: Path) -> None:
    train(plan(), 20, ledger=path, phase="warm-up")
    chosen = []
    for _ in range(2):
        engine, model = PrivacyEngine(ledger=path), nn.Linear(2, 1)
        data = TensorDataset(torch.randn(40, 2), torch.randn(40, 1))
        _, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(data, batch_size=8),
            target_epsilon=4.0,
            target_delta=1e-5,
            epochs=1,
            max_grad_norm=0.5,
            phase="fine-tune",
        )
        chosen.append(engine.mechanism.noise_multiplier)
        try:
            for x, y in loader:
                engine.session.backward((model(x) - y).square().sum(1))
                optimizer.step()
        except BudgetExhaustedError:
            assert len(chosen) == 2
        engine.session.close()
    assert chosen[0] == chosen[1]
    assert 3.99 < engine.get_epsilon(1e-5) <= 4.0


def test_passes_of_phases_are_numbered_on(path: Path) -> None:
    disjoint = plan(sampling=DisjointBatches(), passes=2)
    data = TensorDataset(torch.randn(8, 2), torch.randn(8, 1))
    for phase in ("one", "two"):
        model = nn.Linear(2, 1)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        session = privatize(model, optimizer, disjoint, ledger=path, phase=phase)
        loader = session.batches(data, batches=[[0, 1, 2, 3], [4, 5, 6, 7]])
        for _ in range(2):
            for x, y in loader:
                session.backward((model(x) - y).square().sum(1))
                optimizer.step()
        with pytest.raises(BudgetExhaustedError):
            next(iter(loader))
        session.close()
    assert read_ledger(path).events == [(DisjointPass(1.5, number), 2) for number in range(4)]
    before = read_ledger(path).events
    calibrated = disjoint.calibrate(epsilon=20.0, delta=1e-5, before=before)
    total = [*before, *((DisjointPass(calibrated.noise_multiplier, number), 1) for number in (4, 5))]
    assert 19.9 < epsilon(total, 1e-5) <= 20.0


def test_a_phase_under_other_neighbours_is_refused(path: Path) -> None:
    train(plan(), 1, ledger=path, phase="one")
    model = nn.Linear(2, 1)
    session = privatize(
        model, torch.optim.SGD(model.parameters(), lr=0.1), plan(sampling=DisjointBatches()), ledger=path, phase="two"
    )
    with pytest.raises(AccountingError, match="relations"):
        session.batches(TensorDataset(torch.randn(8, 2)), batches=[[0, 1, 2, 3]])
    session.close()
    train(plan(), 1, ledger=path, phase="two")


def test_under_a_filter_phases_may_be_chosen_by_results_and_end_at_its_budget(path: Path) -> None:
    fixed = PrivacyFilter(3.0, 1e-5)
    first = train(plan(), 4, ledger=path, phase="one", budget=fixed)
    assert first.epsilon(1e-5) == pytest.approx(3.0, rel=1e-7)
    session = train(plan(0.2, noise_multiplier=3.0), 1, ledger=path, phase="two", lease=5)
    left = session.steps_left
    assert left is not None
    assert left > 5
    with pytest.raises(BudgetExhaustedError, match="filter"):
        train(plan(0.2, noise_multiplier=3.0), left + 1, ledger=path, phase="two", budget=fixed)
    assert read_ledger(path).steps == 5 + left
    with pytest.raises(BudgetExhaustedError, match="filter"):  # a schedule is asked for step by step
        train(plan(noise_schedule=(1.0, 1.0)), 2, ledger=path, phase="three")
    said = str(session.guarantee(1e-5))
    assert "Fully adaptive composition" in said
    assert "on trust" not in said.split("Fully adaptive composition")[1].split("The ledger")[0].split("Sampling was")[0]


def test_what_goes_with_no_filter_is_refused_with_a_cure(path: Path) -> None:
    train(plan(), 1, ledger=path, phase="one", budget=PrivacyFilter(3.0, 1e-5))
    with pytest.raises(InvalidArgumentError, match="is its budget"):
        train(plan(), 1, ledger=path, phase="two", budget=Budget(9.0, 1e-5))
    with pytest.raises(AccountingError, match="not charged by a filter"):
        train(plan(sampling=TruncatedPoissonSampling(0.1, 40, 9)), 1, ledger=path, phase="two")
    data = DataLoader(TensorDataset(torch.randn(40, 2), torch.randn(40, 1)), batch_size=8)
    model = nn.Linear(2, 1)
    asked: dict[str, Any] = {
        "module": model,
        "optimizer": torch.optim.SGD(model.parameters(), lr=0.1),
        "data_loader": data,
        "max_grad_norm": 1.0,
    }
    engine = PrivacyEngine(ledger=path)
    with pytest.raises(InvalidArgumentError, match="under a filter"):
        engine.make_private_with_epsilon(**asked, target_epsilon=3.0, target_delta=1e-5, epochs=1, phase="two")
    with pytest.raises(InvalidArgumentError, match="fixed before its first step"):
        engine.make_private(**asked, noise_multiplier=1.0, fully_adaptive=True)
    with pytest.raises(InvalidArgumentError, match="True or False"):
        engine.make_private(**asked, noise_multiplier=1.0, fully_adaptive=1)  # type: ignore[arg-type]
    engine.make_private(
        **asked, noise_multiplier=4.0, max_epsilon=3.0, max_delta=1e-5, fully_adaptive=True, phase="two"
    )
    assert (engine.session.steps_left or 0) > 1
    engine.session.close()


def test_a_phase_that_was_not_begun_leaves_a_finding_to_the_one_before(path: Path) -> None:
    from hushgrad.errors import CrossSampleLeakError, NotEstablishedError

    train(plan(), 2, ledger=path, phase="one")
    model = nn.Linear(2, 1)
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), plan(0.2), ledger=path, phase="two")
    session._parts.spending.not_established(CrossSampleLeakError("depends on others"))
    session.close()
    assert epsilon(read_ledger(path).events, 1e-5) == float("inf")
    with pytest.raises(NotEstablishedError):
        train(plan(), 1, ledger=path, phase="one")
