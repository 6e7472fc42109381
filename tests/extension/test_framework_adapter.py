"""An adapter for a framework that owns the loop: one file, over `session.loss`, `end_item` and `logical_batches`.

The framework is a toy with the habits of real ones: it looks one batch ahead to know the last, it calls backward on a
scalar that it divides by the number of its micro-batches, it steps optimizer and scheduler together.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

import hushgrad
from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import ProtocolError
from hushgrad.randomness import KeyStream

N, B, STEPS = 48, 8, 6


class Framework:
    """Somebody else's trainer: it owns backward, and the order of calls."""

    accumulation = 4

    def __init__(self, optimizer: torch.optim.Optimizer) -> None:
        self.optimizer = optimizer
        self.scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        self.steps = 0

    def fit(self, batches: Iterable[Any], micro_batches: Callable[[Any], Iterator[Callable[[], Tensor]]]) -> None:
        iterator = iter(batches)
        ahead = next(iterator, None)
        while ahead is not None:
            batch, ahead = ahead, next(iterator, None)
            for compute_loss in micro_batches(batch):
                self.backward(compute_loss())
            self.optimizer.step()
            self.scheduler.step()
            self.optimizer.zero_grad()
            self.steps += 1

    def backward(self, loss: Tensor) -> None:
        (loss / self.accumulation).backward()  # type: ignore[no-untyped-call]


class Adapter:
    """The whole of it: what one micro-batch is, which scalar the framework gets, and where it ends."""

    def __init__(self, session: Session, model: nn.Module) -> None:
        self.session, self.model = session, model

    def micro_batches(self, batch: Any) -> Iterator[Callable[[], Tensor]]:
        for x, y in batch:
            yield lambda x=x, y=y: self.scalar((self.model(x) - y).square().mean(1))
            self.session.end_item()

    def scalar(self, losses: Tensor) -> Tensor:
        return self.session.loss(losses, scale=1 / Framework.accumulation)


class DividesByTheBatch(Adapter):
    """Planted: the mean over what happened to be drawn."""

    def scalar(self, losses: Tensor) -> Tensor:
        return super().scalar(losses) / len(losses)


class ForgetsAnItem(Adapter):
    """Planted: the rest of a logical batch is left out, which may depend on what was drawn."""

    def micro_batches(self, batch: Any) -> Iterator[Callable[[], Tensor]]:
        yield next(super().micro_batches(batch))
        self.session.end_item()


class NeverEndsItems(Adapter):
    """Planted: it reads on without ending the item."""

    def micro_batches(self, batch: Any) -> Iterator[Callable[[], Tensor]]:
        for x, y in batch:
            yield lambda x=x, y=y: self.scalar((self.model(x) - y).square().mean(1))


MECHANISM = DPSGD(
    noise_multiplier=1.0, clipping=FlatClipping(0.5), sampling=PoissonSampling(B / N), expected_batch_size=B
)


def attach(rows: int = 3) -> tuple[nn.Module, Any, Session, Any]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    session = privatize(model, optimizer, MECHANISM, key=KeyStream.fixed_for_tests(7))
    data = TensorDataset(torch.randn(N, 3), torch.randn(N, 2))
    return model, optimizer, session, session.batches(data, steps_per_pass=STEPS, max_physical_batch_size=rows)


def values(model: nn.Module) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()])


def test_the_framework_trains_what_a_plain_loop_trains() -> None:
    model, optimizer, session, loader = attach()
    framework = Framework(optimizer)
    framework.fit(loader.logical_batches(), Adapter(session, model).micro_batches)
    plain, other, reference, items = attach()
    scheduler = torch.optim.lr_scheduler.ExponentialLR(other, 0.9)
    for x, y in items:
        reference.backward((plain(x) - y).square().mean(1))
        other.step()
        if reference.last_step_updated:
            scheduler.step()
    assert torch.equal(values(model), values(plain))
    assert session.charged == reference.charged == [(MECHANISM.event(), STEPS)]
    assert framework.steps == STEPS
    names = {condition.name for condition in session.guarantee(1e-5).conditions}
    assert names <= {"fixed key", "no ledger path", "own scalar loss, not read"}  # the last where a look cannot run it


def test_the_adapter_is_verified() -> None:
    data = TensorDataset(torch.randn(N, 3), torch.randn(N, 2))

    def loop(session: Session, model: nn.Module, optimizer: Any, loader: Any, criterion: Any) -> None:
        Framework(optimizer).fit(loader.logical_batches(), Adapter(session, model).micro_batches)

    verdict = hushgrad.verify(
        nn.Linear(3, 2), DataLoader(data, batch_size=B), nn.MSELoss(), MECHANISM, session_loop=loop
    )
    assert verdict.passed


class StopsWhenTheLossIsSmall(Framework):
    """Planted: early stopping by the loss of a private batch, which the ledger does not show."""

    def backward(self, loss: Tensor) -> None:
        super().backward(loss)
        if float(loss.detach()) > 1e3:
            self.optimizer.param_groups[0]["lr"] = 1e-9


@pytest.mark.slow
def test_a_schedule_that_follows_the_loss_is_found_by_verify() -> None:
    data = TensorDataset(torch.randn(N, 3), torch.randn(N, 2))

    def loop(session: Session, model: nn.Module, optimizer: Any, loader: Any, criterion: Any) -> None:
        StopsWhenTheLossIsSmall(optimizer).fit(loader.logical_batches(), Adapter(session, model).micro_batches)

    verdict = hushgrad.verify(
        nn.Linear(3, 2), DataLoader(data, batch_size=B), nn.MSELoss(), MECHANISM, session_loop=loop
    )
    assert not verdict.passed
    assert "control-flow-depends-on-data" in {cause.code for cause in verdict.causes}


@pytest.mark.parametrize(
    ("planted", "message"),
    [
        (DividesByTheBatch, "another gradient than the declared scale"),
        (ForgetsAnItem, "not complete|no batch to work on"),
        (NeverEndsItems, r"before optimizer\.step"),
    ],
)
def test_a_planted_bug_in_an_adapter_is_refused(planted: type[Adapter], message: str) -> None:
    model, optimizer, session, loader = attach(rows=2)
    before = values(model)
    with pytest.raises(ProtocolError, match=message):
        Framework(optimizer).fit(loader.logical_batches(), planted(session, model).micro_batches)
    assert session.steps == 0
    assert torch.equal(values(model), before)
