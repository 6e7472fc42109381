"""Losses with gradient penalties: one for each example is taken, a scalar of the loop's own is refused by name."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, privatize
from hushgrad.errors import CrossSampleLeakError, UncoveredParameterUseError


def slope(model: nn.Module, x: Tensor) -> Tensor:
    x = x.detach().clone().requires_grad_()
    (found,) = torch.autograd.grad(model(x).sum(), x, create_graph=True)
    return found


def penalty(model: nn.Module, x: Tensor) -> Tensor:
    return (slope(model, x).norm(2, 1) - 1) ** 2


def criterion(real: Tensor, fake: Tensor, gradient: Tensor) -> Tensor:
    return fake.sum(1) - real.sum(1) + 10 * (gradient.norm(2, 1) - 1) ** 2


def trained(loop: Callable[[Any, nn.Module, Tensor, Tensor], Any], *, strict: bool = False, **options: Any) -> Any:
    """Train a critic on 24 records by that loop, which gets the engine, the model, records and fakes of theirs."""
    torch.manual_seed(0)
    model, engine = nn.Sequential(nn.Linear(4, 6), nn.Softplus(), nn.Linear(6, 1)), PrivacyEngine(strict=strict)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(TensorDataset(torch.randn(24, 4)), batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        **{"poisson_sampling": False, **options},
    )
    for (real,) in loader:
        loop(engine, model, real, real * 0.5 + 1)
        optimizer.step()
    return engine


TAKEN: dict[str, Callable[[Any, nn.Module, Tensor, Tensor], Any]] = {
    "session.backward": lambda e, d, r, f: e.session.backward(
        d(f).sum(1) - d(r).sum(1) + 10 * penalty(d, r / 2 + f / 2)
    ),
    "session.loss": lambda e, d, r, f: e.session.loss(d(f).sum(1) + penalty(d, f)).backward(),
    "a criterion": lambda e, d, r, f: e.per_example(criterion)(d(r), d(f), slope(d, r / 2 + f / 2)).backward(),
    "the penalty alone": lambda e, d, r, f: e.session.backward(penalty(d, r)),
    "in a backward of its own": lambda e, d, r, f: (
        e.session.backward(d(f).sum(1) - d(r).sum(1)),
        e.session.backward(penalty(d, r)),
    ),
}


@pytest.mark.parametrize("options", [{}, {"poisson_sampling": True, "max_physical_batch_size": 3}], ids=["", "drawn"])
@pytest.mark.parametrize("name", TAKEN)
def test_a_penalty_in_losses_of_one_row_for_each_example_trains(name: str, options: dict[str, Any]) -> None:
    engine = trained(TAKEN[name], strict=True, **options)
    assert engine.session.steps == 3
    names = {condition.name for condition in engine.guarantee(1e-5).conditions}
    assert not names & {"not examined", "loss of inner values", "own scalar loss"}


SCALARS: dict[str, Callable[[Any, nn.Module, Tensor, Tensor], Any]] = {
    "as papers have it": lambda e, d, r, f: (d(f).mean() - d(r).mean() + 10 * penalty(d, r).mean()).backward(),
    "alone": lambda e, d, r, f: penalty(d, r).mean().backward(),
    "after the session's": lambda e, d, r, f: (
        e.session.backward(d(f).sum(1) - d(r).sum(1)),
        penalty(d, r).sum().backward(),
    ),
    "beside a criterion": lambda e, d, r, f: (
        e.per_example(lambda out: out.sum(1))(d(r)) + penalty(d, r).mean()
    ).backward(),
}


@pytest.mark.parametrize("name", SCALARS)
def test_a_penalty_in_a_scalar_of_the_loops_own_is_refused_with_a_cure_that_works(name: str) -> None:
    with pytest.raises(UncoveredParameterUseError) as raised:
        trained(SCALARS[name])
    assert "session.backward(losses)" in raised.value.cure
    assert "(g.flatten(1).norm(2, 1) - 1) ** 2" in raised.value.cure


def test_a_gradient_that_is_asked_for_and_not_used_changes_nothing_of_a_scalar_loss() -> None:
    engine = trained(lambda e, d, r, f: (slope(d, r), d(r).square().mean().backward()))
    assert engine.session.steps == 3


def declared() -> tuple[nn.Module, Any, Any]:
    model = nn.Linear(4, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    plan = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4.0
    )
    return model, optimizer, privatize(model, optimizer, plan)


def test_without_a_loader_what_the_loop_makes_of_gradients_is_told_as_inner_values() -> None:
    model, optimizer, session = declared()
    x = torch.randn(4, 4)
    session.backward(model(x).sum(1) + penalty(model, x))
    optimizer.step()
    assert "loss of inner values" in [condition.name for condition in session.guarantee(1e-5).conditions]
    model, _, session = declared()
    gradient = slope(model, x)
    with pytest.raises(CrossSampleLeakError):
        session.backward(model(x).sum(1) + (gradient.norm() - 1).square().expand(4))
