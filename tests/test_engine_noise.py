"""`make_private(noise=...)`: correlated noise by the façade."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import CyclicPoissonSampling, FixedOrderBatches, PrivacyEngine, optimal_banded, optimal_buffered
from hushgrad.accounting import CyclicPoisson
from hushgrad.errors import BudgetExhaustedError, DatasetError, InvalidArgumentError, UnsupportedSamplerError

DATA = TensorDataset(torch.randn(64, 3), torch.randint(0, 2, (64,)))


def made(method: str = "make_private_with_epsilon", *, shuffle: bool = False, **more: Any) -> tuple[Any, ...]:
    model = nn.Linear(3, 2)
    engine = PrivacyEngine(**{name: more.pop(name) for name in ("ledger",) if name in more})
    target = {"target_epsilon": 2.0, "target_delta": 1e-5, "epochs": 2}
    given = {**({} if method == "make_private" else target), "max_grad_norm": 1.0, **more}
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    _, _, loader = getattr(engine, method)(
        module=model, optimizer=optimizer, data_loader=DataLoader(DATA, batch_size=2, shuffle=shuffle), **given
    )
    return engine, model, optimizer, loader


def train(engine: PrivacyEngine, model: nn.Module, optimizer: Any, loader: Any, passes: int = 2) -> None:
    criterion = engine.per_example(nn.CrossEntropyLoss())
    for _ in range(passes):
        for x, y in loader:
            optimizer.zero_grad()
            criterion(model(x), y).backward()
            optimizer.step()


@pytest.mark.parametrize(
    ("noise", "poisson", "kind"),
    [("banded", True, CyclicPoissonSampling), ("buffered", False, FixedOrderBatches), ("best", True, None)],
)
def test_noise_that_is_named_is_chosen_for_the_plan_and_meets_its_epsilon(noise: str, poisson: bool, kind: Any) -> None:
    engine, *rest = made(noise=noise, poisson_sampling=poisson)
    train(engine, *rest)
    sampling = engine.mechanism.sampling
    assert kind is None or type(sampling) is kind
    assert engine.get_epsilon(1e-5) == pytest.approx(2.0, rel=2e-3)
    assert engine.get_epsilon(1e-5) <= 2.0
    with pytest.raises(BudgetExhaustedError):
        train(engine, *rest, passes=1)


def test_a_strategy_is_taken_with_the_sampling_that_goes_with_it() -> None:
    engine, *rest = made("make_private", noise_multiplier=1.0, noise=optimal_banded(64, 8))
    assert engine.mechanism.sampling == CyclicPoissonSampling(2 / 64, 8)
    train(engine, *rest, passes=1)
    assert engine.session.charged == [(CyclicPoisson(0.25, 1.0, 8, 0), 32)]


def test_independent_noise_is_what_it_was() -> None:
    engine, *_ = made("make_private", noise_multiplier=1.0)
    assert engine.mechanism.noise.strategy.bands == 1
    assert engine.mechanism.sampling.poisson_rate == 2 / 64


def test_spare_steps_pay_for_a_resume(tmp_path: Path) -> None:
    path, bands = tmp_path / "ledger.jsonl", 4
    options = {"noise": optimal_banded(64, bands), "ledger": path, "spare_steps": bands}
    engine, *rest = made(**options)
    train(engine, *rest, passes=1)
    engine.session.close()
    engine, *rest = made(**options)
    train(engine, *rest, passes=1)
    assert engine.session.steps == 64
    assert engine.get_epsilon(1e-5) <= 2.0


@pytest.mark.parametrize(
    ("method", "more", "error"),
    [
        ("make_private", {"noise_multiplier": 1.0, "noise": "banded"}, InvalidArgumentError),
        ("make_private", {"noise_multiplier": 1.0, "noise": "laplace"}, InvalidArgumentError),
        ("make_private", {"noise_multiplier": 1.0, "noise": 3}, InvalidArgumentError),
        ("make_private", {"noise_multiplier": 1.0, "noise": optimal_buffered(64, 32)}, InvalidArgumentError),
        ("make_private", {"noise_multiplier": 1.0, "noise": optimal_banded(64, 33)}, InvalidArgumentError),
        ("make_private_with_epsilon", {"noise": "buffered"}, InvalidArgumentError),
        ("make_private_with_epsilon", {"noise": "laplace"}, InvalidArgumentError),
        ("make_private_with_epsilon", {"noise": "banded", "max_batch_size": 10}, InvalidArgumentError),
        (
            "make_private_with_epsilon",
            {"noise": "buffered", "poisson_sampling": False, "shuffle": True},
            UnsupportedSamplerError,
        ),
    ],
)
def test_what_has_no_proof_or_no_plan_is_refused_at_set_up(method: str, more: dict[str, Any], error: type) -> None:
    with pytest.raises(error):
        made(method, **more)


def test_a_stream_is_refused() -> None:
    class Stream(torch.utils.data.IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(DATA)

    model = nn.Linear(3, 2)
    with pytest.raises(DatasetError, match="how soon a record comes back"):
        PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(Stream(), batch_size=2),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=False,
            noise=optimal_banded(64, 4),
        )
