"""A loop over hushgrad's own loader: what it adds up, and what is no part of what was drawn."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from private_loops import NO_NOISE, NOISY, Training, attach, losses, network, values
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import DisjointBatches, FlatClipping, PrivacyEngine
from hushgrad.accounting.accountants import epsilon
from hushgrad.accounting.events.disjoint_pass import DisjointPass
from hushgrad.errors import ClosedSessionError, LossShapeError, PrivacyUnitError
from hushgrad.randomness import KeyStream


def test_several_backwards_over_one_item_add_up_per_example_before_clipping() -> None:
    halves, whole = Training(physical=None), Training(physical=None)
    whole.model.load_state_dict(halves.model.state_dict())
    for training in (halves, whole):
        training.session._parts.update._mechanism = _clipping_at(training.session.mechanism, 0.05)
    x, y = next(iter(halves.loader))
    next(iter(whole.loader))
    for part in (slice(0, 1), slice(1, 2)):
        (halves.model(x)[:, part] - y[:, part]).square().sum(1).mean().backward()
    (whole.model(x) - y).square().sum(1).mean().backward()
    for training in (halves, whole):
        training.optimizer.step()
    for ours, theirs in zip(halves.values(), whole.values(), strict=True):
        torch.testing.assert_close(ours, theirs)


def _clipping_at(mechanism: Any, norm: float) -> Any:
    return replace(mechanism, clipping=FlatClipping(norm))


def test_a_loader_of_a_closed_session_is_refused() -> None:
    training = Training()
    training.session.close()
    with pytest.raises(ClosedSessionError):
        next(iter(training.loader))
    with pytest.raises(ClosedSessionError):
        training.session.backward(torch.zeros(1, requires_grad=True))


def _items(training: Training) -> Iterator[Any]:
    return iter(training.loader)


@pytest.mark.parametrize(
    "change",
    [lambda t: t[:4], lambda t: torch.cat([t, t]), lambda t: t[:1].expand(7, *t.shape[1:])],
    ids=["a part of the batch", "every record twice", "another number of rows"],
)
def test_a_forward_on_other_rows_than_the_item_has_is_refused(change: Callable[[Tensor], Tensor]) -> None:
    training = Training(physical=None)
    x, y = next(_items(training))
    with pytest.raises(PrivacyUnitError):
        training.work((change(x), change(y)))
    assert training.session.steps == 0


def test_an_empty_draw_is_a_step_of_noise_alone() -> None:
    """Poisson with an expected size of 1 draws nothing in e^-1 of the steps: 60 steps without one have probability
    1e-12."""
    model = nn.Linear(3, 2)
    engine = PrivacyEngine(test_key=5)
    model, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=1.0),
        data_loader=DataLoader(TensorDataset(torch.ones(60, 3)), batch_size=1),
        noise_multiplier=0.0,
        max_grad_norm=1.0,
    )
    empty = 0
    for (x,) in loader:
        before = model.weight.detach().clone()
        model(x).sum(1).mean().backward()
        drawn = engine.session.current_batch
        assert drawn is not None
        optimizer.step()
        assert torch.equal(before, model.weight) == (drawn.weight == 0)
        empty += drawn.weight == 0
    assert empty > 0
    assert engine.session.steps == 60


def test_a_sessions_own_loader_is_observed_and_takes_losses_of_each_item() -> None:
    data = TensorDataset(torch.randn(16, 3).double())
    model, optimizer, session = attach(NOISY)
    loader = session.batches(data, max_physical_batch_size=3)
    assert len(loader) == 2
    for (x,) in loader:
        session.backward(losses(model, x))
        optimizer.step()
    assert session.steps == 2
    assert "observed" in str(session.guarantee(1e-5))
    assert "N = 16" in str(session.guarantee(1e-5))


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_session_backward_over_a_loader_item_is_the_scalar_loss(reduction: str) -> None:
    data = TensorDataset(torch.randn(16, 3).double())
    model = network()
    results = []
    for by_session in (True, False):
        own, optimizer, session = attach(
            replace(NO_NOISE, loss_reduction=reduction),
            copy.deepcopy(model),
            key=KeyStream.fixed_for_tests(1),
        )
        for (x,) in session.batches(data, max_physical_batch_size=3):
            found = losses(own, x)
            if by_session:
                session.backward(found)
            else:
                (found.mean() if reduction == "mean" else found.sum()).backward()
            optimizer.step()
        results.append(values(own))
    for ours, theirs in zip(*results, strict=True):
        torch.testing.assert_close(ours, theirs)


def test_losses_of_another_number_than_the_records_of_the_item_are_refused() -> None:
    model, _, session = attach()
    (x,) = next(iter(session.batches(TensorDataset(torch.randn(16, 3).double()))))
    with pytest.raises(LossShapeError, match="one for each example"):
        session.backward(losses(model, x)[1:])


def test_disjoint_passes_are_charged_once_each_and_never_share_a_number(tmp_path: Path) -> None:
    mechanism = replace(NOISY, sampling=DisjointBatches())
    data = TensorDataset(torch.randn(16, 3).double())
    for run in range(2):
        model, optimizer, session = attach(mechanism, ledger=tmp_path / "ledger")
        loader = session.batches(data, batches=[range(8), range(8, 16)])
        for leave_after in (2, 1, 2):
            for count, (x,) in enumerate(loader, 1):
                session.backward(losses(model, x))
                optimizer.step()
                if count == leave_after:
                    break
        passes = [event.pass_index for event, _ in session.charged]  # type: ignore[union-attr]
        assert passes == list(range(3 * (run + 1)))
        assert session.epsilon(1e-5) == epsilon([(DisjointPass(1.0, i), 1) for i in passes], 1e-5)
        session.close()


def test_the_item_in_work_is_told_until_its_logical_batch_has_its_step() -> None:
    training = Training()
    assert training.session.current_batch is None
    for item in training.loader:
        batch = training.session.current_batch
        assert batch is not None
        assert batch.size == len(item[0])
        training.work(item)
        assert training.session.current_batch is None


def test_an_item_that_ends_by_itself_is_told_until_the_step() -> None:
    training = Training(physical=None)
    item = next(iter(training.loader))
    batch = training.session.current_batch
    training.loss(item).backward()
    training.session.end_item()
    assert training.session.current_batch is batch
    training.optimizer.step()
    assert training.session.current_batch is None
