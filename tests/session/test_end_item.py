"""One step for each logical batch: items end by themselves, and `optimizer.step()` is called `len(loader)` times."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import ContractChangedError, ProtocolError, StrayGradientError
from hushgrad.randomness import KeyStream

N, B = 40, 8


def attach(rows: int | None = 3, noise_multiplier: float = 1.0) -> tuple[nn.Module, Any, Session, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=noise_multiplier,
        clipping=FlatClipping(0.5),
        sampling=PoissonSampling(B / N),
        expected_batch_size=B,
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(3))
    dataset = TensorDataset(torch.randn(N, 3), torch.randn(N, 2))
    return model, optimizer, session, session.batches(dataset, steps_per_pass=6, max_physical_batch_size=rows)


def losses(model: nn.Module, item: Any) -> Tensor:
    return (model(item[0]) - item[1]).square().mean(1)


def values(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def train_by_items() -> tuple[Tensor, Session, int]:
    model, optimizer, session, loader = attach()
    steps = 0
    for batch in loader.logical_batches():
        for item in batch:
            session.backward(losses(model, item))
            session.end_item()
        optimizer.step()
        steps += 1
        assert session.last_step_updated
    return values(model), session, steps


def test_a_step_for_each_logical_batch_trains_what_a_step_for_each_item_trains() -> None:
    model, optimizer, session, loader = attach()
    for item in loader:
        session.backward(losses(model, item))
        optimizer.step()
    by_items, other, steps = train_by_items()
    assert torch.equal(values(model), by_items)
    assert session.charged == other.charged
    assert steps == len(loader) == 6


def test_a_plain_loss_may_be_used_with_end_item() -> None:
    trained = []
    for plain in (False, True):
        model, optimizer, session, loader = attach()
        for batch in loader.logical_batches():
            for item in batch:
                optimizer.zero_grad()
                if plain:
                    losses(model, item).mean().backward()
                else:
                    session.backward(losses(model, item))
                session.end_item()
            optimizer.step()
        trained.append(values(model))
    assert torch.equal(*trained)


def test_a_step_before_the_logical_batch_is_complete_is_refused() -> None:
    model, optimizer, session, loader = attach(rows=1)
    items = iter(next(loader.logical_batches()))
    session.backward(losses(model, next(items)))
    session.end_item()
    assert session._loop.is_open
    with pytest.raises(ProtocolError, match="no batch to work on"):
        optimizer.step()
    assert session.steps == 0


def test_the_next_logical_batch_does_not_begin_before_the_step() -> None:
    model, _, session, loader = attach(rows=None)
    items = iter(loader)
    session.backward(losses(model, next(items)))
    session.end_item()
    with pytest.raises(ProtocolError, match=r"before optimizer\.step\(\) was called for a logical batch"):
        next(items)


def test_an_item_ends_once_and_after_a_backward() -> None:
    model, _, session, loader = attach(rows=None)
    with pytest.raises(ProtocolError, match="no batch to work on"):
        session.end_item()
    item = next(iter(loader))
    with pytest.raises(ProtocolError, match="no backward has finished"):
        session.end_item()
    session.backward(losses(model, item))
    session.end_item()
    with pytest.raises(ProtocolError, match="no batch to work on"):
        session.end_item()


def test_a_backward_through_an_item_that_was_ended_is_refused() -> None:
    model, _, session, loader = attach(rows=None)
    item = next(iter(loader))
    found = losses(model, item)
    found.mean().backward(retain_graph=True)
    session.end_item()
    with pytest.raises(ProtocolError, match="ended already"):
        session.backward(found)


def test_end_item_without_a_loader_is_refused() -> None:
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4
    )
    session = privatize(model, optimizer, mechanism)
    with pytest.raises(ProtocolError, match="session's own loader"):
        session.end_item()


def test_discard_forgets_a_logical_batch_that_waits_for_its_step() -> None:
    model, optimizer, session, loader = attach(rows=None)
    session.backward(losses(model, next(iter(loader))))
    session.end_item()
    session.discard()
    with pytest.raises(ProtocolError, match="no batch to work on"):
        optimizer.step()
    session.backward(losses(model, next(iter(loader))))
    session.end_item()
    optimizer.step()
    assert session.steps == 1


def test_a_stray_gradient_between_the_end_of_the_last_item_and_the_step_is_refused() -> None:
    model, optimizer, session, loader = attach(rows=None)
    session.backward(losses(model, next(iter(loader))))
    session.end_item()
    parameter = next(model.parameters())
    parameter.grad = torch.ones_like(parameter)
    with pytest.raises(StrayGradientError):
        optimizer.step()
    assert session.steps == 0


def test_a_learning_rate_that_changes_inside_a_logical_batch_is_refused_and_between_two_is_not() -> None:
    model, optimizer, session, loader = attach(rows=1)
    for number, batch in enumerate(loader.logical_batches()):
        for place, item in enumerate(batch):
            session.backward(losses(model, item))
            if number == 1 and place == 1:
                optimizer.param_groups[0]["lr"] = 0.5
                with pytest.raises(ContractChangedError, match="inside a logical batch"):
                    session.end_item()
                return
            session.end_item()
        optimizer.step()
        optimizer.param_groups[0]["lr"] *= 0.9
    raise AssertionError("the second logical batch had one item; take another key")
