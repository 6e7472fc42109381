"""A statistic beside training: charged in the session's own account, and no step of it."""

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
    privatize,
    release,
)
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.gaussian import Gaussian
from hushgrad.accounting.events.poisson import PoissonSampled
from hushgrad.accounting.ledger.view import read_ledger
from hushgrad.errors import (
    BudgetExhaustedError,
    ClosedSessionError,
    ContractChangedError,
    InvalidArgumentError,
    ProtocolError,
)
from hushgrad.releases import Accuracy, Mean, Normalisation

DELTA = 1e-6
DATA = TensorDataset(torch.randn(60, 3), torch.randint(0, 2, (60,)))


def mechanism(**changes: Any) -> DPSGD:
    given = {"noise_multiplier": 1.0, "clipping": FlatClipping(1.0), "sampling": PoissonSampling(0.1)}
    return DPSGD(**{**given, "expected_batch_size": 6, **changes})


def begun(plan: DPSGD | None = None, **options: Any) -> tuple[nn.Module, Any, Session]:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    return model, optimizer, privatize(model, optimizer, plan or mechanism(), **options)


def run(model: nn.Module, optimizer: Any, session: Session, loader: Any, steps: int = 5) -> None:
    criterion = session.per_example(nn.CrossEntropyLoss())
    for _, (x, y) in zip(range(steps), loader, strict=False):
        optimizer.zero_grad()
        criterion(model(x), y).backward()
        optimizer.step()


def test_training_and_releases_are_one_account_and_a_release_is_no_step(tmp_path: Path) -> None:
    model, optimizer, session = begun(ledger=tmp_path / "l")
    loader = session.batches(DATA)
    run(model, optimizer, session, loader)
    session.release(Accuracy(model), noise_multiplier=3.0)
    run(model, optimizer, session, loader)
    session.release(Mean(3, 1.0, of=lambda r: r[0]), noise_multiplier=4.0)
    expected = epsilon([(PoissonSampled(0.1, 1.0), 10), (Gaussian(3.0), 1), (Gaussian(4.0), 1)], DELTA)
    assert session.epsilon(DELTA) == pytest.approx(expected, rel=1e-9)
    assert session.steps == 10
    said = str(session.guarantee(DELTA))
    assert "after 10 steps" in said
    assert "every record in 2 releases of a statistic beside the steps" in said
    session.close()
    assert read_ledger(tmp_path / "l").steps == 10


def test_a_session_resumes_over_releases_and_keeps_to_its_plan(tmp_path: Path) -> None:
    model, optimizer, session = begun(mechanism(steps=8), ledger=tmp_path / "l", lease=4)
    run(model, optimizer, session, session.batches(DATA))
    state = session.state_dict()
    session.release(Accuracy(model), noise_multiplier=3.0)
    session.close()
    model, optimizer, session = begun(mechanism(steps=8), ledger=tmp_path / "l")
    loader = session.batches(DATA)
    assert session.load_state_dict(state) == 0
    assert session.steps_left == 3
    run(model, optimizer, session, loader, 3)
    with pytest.raises(BudgetExhaustedError):
        run(model, optimizer, session, loader, 1)
    expected = epsilon([(PoissonSampled(0.1, 1.0), 8), (Gaussian(3.0), 1)], DELTA)
    assert session.epsilon(DELTA) == pytest.approx(expected, rel=1e-9)


def test_a_budget_holds_for_steps_and_releases_together() -> None:
    model, optimizer, session = begun(budget=Budget(3.0, DELTA))
    loader = session.batches(DATA)
    run(model, optimizer, session, loader, 2)
    before = session.steps_left
    session.release(Accuracy(model), noise_multiplier=4.0)
    after = session.steps_left
    assert before is not None
    assert after is not None
    assert 0 < after < before
    charged = session.charged
    with pytest.raises(BudgetExhaustedError, match="nothing was charged"):
        session.release(Accuracy(model), noise_multiplier=0.5)
    assert session.charged == charged
    for _ in range(20):  # until nothing of the budget is left that a release would fit into
        run(model, optimizer, session, loader, min(session.steps_left or 0, 5))
    assert session.steps_left == 0
    assert session.epsilon(DELTA) <= 3.0


def test_a_release_that_takes_the_room_of_all_steps_leaves_none() -> None:
    model, _, session = begun(budget=Budget(3.0, DELTA))
    session.batches(DATA)
    session.release(Accuracy(model), epsilon=2.99, delta=DELTA)
    assert session.steps_left == 0


def test_a_filter_admits_releases_like_steps() -> None:
    model, optimizer, session = begun(budget=PrivacyFilter(4.0, DELTA))
    loader = session.batches(DATA)
    run(model, optimizer, session, loader, 2)
    before = session.steps_left
    session.release(Accuracy(model), noise_multiplier=4.0)
    after = session.steps_left
    assert before is not None
    assert after is not None
    assert after < before
    with pytest.raises(BudgetExhaustedError):
        session.release(Accuracy(model), noise_multiplier=0.5)


def test_own_batches_have_releases_under_zero_out_neighbours() -> None:
    plan = mechanism(sampling=DisjointBatches(), expected_batch_size=20, passes=3)
    model, _, session = begun(plan)
    session.batches_of(DataLoader(DATA, batch_size=20))
    session.release(Accuracy(model), noise_multiplier=3.0)
    assert session.guarantee(DELTA).adjacency == "zero-out"


def test_release_first_then_train_to_a_target_that_covers_both(tmp_path: Path) -> None:
    scale = release(
        Normalisation(low=[-4] * 3, high=[4] * 3, of=lambda r: r[0]),
        DATA,
        ledger=tmp_path / "l",
        epsilon=0.5,
        delta=DELTA,
    ).answer
    assert scale.mean.shape == scale.std.shape == (3,)
    engine = PrivacyEngine(ledger=tmp_path / "l")
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    given: dict[str, Any] = {
        "module": model,
        "optimizer": optimizer,
        "data_loader": DataLoader(DATA, batch_size=6),
        "target_epsilon": 2.0,
        "target_delta": DELTA,
        "epochs": 1,
        "max_grad_norm": 1.0,
    }
    with pytest.raises(ContractChangedError, match="no phase is named"):
        engine.make_private_with_epsilon(**given)
    model, optimizer, loader = engine.make_private_with_epsilon(**given, phase="training")
    run(model, optimizer, engine.session, loader, 100)
    assert engine.session.steps == 10
    assert 1.97 < engine.get_epsilon(DELTA) <= 2.0


def test_what_a_phase_releases_beside_its_steps_comes_on_top_of_its_plan_also_when_it_goes_on(tmp_path: Path) -> None:
    """The plan of a phase counts what came before its first step, and nothing that came later."""
    path = tmp_path / "l"
    before = release(
        Normalisation(low=[-4] * 3, high=[4] * 3, of=lambda r: r[0]), DATA, ledger=path, noise_multiplier=9
    )
    noises = []
    for steps in (4, 6):
        engine, model = PrivacyEngine(ledger=path), nn.Linear(3, 2)
        model, optimizer, loader = engine.make_private_with_epsilon(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(DATA, batch_size=6),
            target_epsilon=2.0,
            target_delta=DELTA,
            epochs=1,
            max_grad_norm=1.0,
            phase="training",
        )
        noises.append(engine.mechanism.noise_multiplier)
        run(model, optimizer, engine.session, loader, steps)
        engine.session.release(Accuracy(model), noise_multiplier=20.0)
        engine.session.close()
    assert noises[0] == noises[1]
    assert engine.session.steps == 10
    first, *rest = read_ledger(path).events
    assert first == (before.event, 1)
    trained = [part for part in rest if part[0].is_step]
    assert 1.97 < epsilon([first, *trained], DELTA) <= 2.0 < engine.get_epsilon(DELTA)


def test_a_release_is_refused_where_it_cannot_be_charged_or_read() -> None:
    model, optimizer, session = begun()
    with pytest.raises(InvalidArgumentError, match="no loader"):
        session.release(Accuracy(model), noise_multiplier=3.0)
    with pytest.raises(ProtocolError, match="no ledger yet"):
        session.release(Accuracy(model), DATA, noise_multiplier=3.0)
    loader = session.batches(DATA)
    for x, y in loader:
        session.backward(nn.functional.cross_entropy(model(x), y, reduction="none"))
        with pytest.raises(ProtocolError, match="inside a logical batch"):
            session.release(Accuracy(model), noise_multiplier=3.0)
        optimizer.step()
        break
    session.close()
    with pytest.raises(ClosedSessionError):
        session.release(Accuracy(model), noise_multiplier=3.0)


def test_records_of_a_test_set_are_charged_in_the_same_account() -> None:
    model, _, session = begun()
    session.batches(DATA)
    other = TensorDataset(torch.randn(200, 3), torch.randint(0, 2, (200,)))
    found = session.release(Accuracy(model), other, noise_multiplier=10.0)
    assert "over 200 records" in found.event.to_json()["query"]
    assert session.epsilon(DELTA) == pytest.approx(epsilon([(Gaussian(10.0), 1)], DELTA), rel=1e-9)
