"""`session.loss`: a scalar for a loop whose backward is somebody else's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from torch.utils.data import TensorDataset

from hushgrad import DPSGD, FlatClipping, PoissonSampling, Session, privatize
from hushgrad.errors import CrossSampleLeakError, LossShapeError, ProtocolError
from hushgrad.randomness import KeyStream

N, B = 32, 8


class Model(nn.Module):
    def __init__(self, *, checkpointed: bool = False, autocast: bool = False) -> None:
        super().__init__()
        self.first, self.last = nn.Linear(3, 4), nn.Linear(4, 2)
        self.checkpointed, self.autocast = checkpointed, autocast

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
            h = torch.tanh(self.first(x))
            if self.checkpointed:
                return checkpoint(self.last, h, use_reentrant=False)  # type: ignore[no-any-return]
            return self.last(h)  # type: ignore[no-any-return]


def attach(reduction: str = "mean", **options: bool) -> tuple[nn.Module, Any, Session, Any]:
    torch.manual_seed(0)
    model = Model(**options)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0,
        clipping=FlatClipping(0.2),
        sampling=PoissonSampling(B / N),
        expected_batch_size=B,
        loss_reduction=reduction,
    )
    session = privatize(model, optimizer, mechanism, key=KeyStream.fixed_for_tests(4))
    dataset = TensorDataset(torch.randn(N, 3), torch.randn(N, 2))
    return model, optimizer, session, session.batches(dataset, steps_per_pass=3, max_physical_batch_size=3)


def losses(model: nn.Module, item: Any) -> Tensor:
    return (model(item[0]).float() - item[1]).square().mean(1)


def trained(run: Callable[[Session, Tensor], None], reduction: str = "mean", **options: bool) -> tuple[Tensor, Session]:
    model, optimizer, session, loader = attach(reduction, **options)
    for item in loader:
        run(session, losses(model, item))
        optimizer.step()
    return torch.cat([parameter.detach().flatten() for parameter in model.parameters()]), session


SETTINGS = [
    {},
    {"checkpointed": True},
    {"autocast": True},
    {"autocast": True, "checkpointed": True},
]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("options", SETTINGS, ids=lambda options: "+".join(options) or "plain")
def test_the_backward_of_the_scalar_is_that_of_the_session(options: dict[str, bool], reduction: str) -> None:
    """Guarantee: what each loss gets is a constant, whatever gradient came: one that is not `scale` is refused."""
    by_session, _ = trained(lambda session, found: session.backward(found), reduction, **options)
    by_loop, session = trained(lambda session, found: session.loss(found).backward(), reduction, **options)
    scaled, _ = trained(lambda session, found: (session.loss(found, scale=1 / 3) / 3).backward(), reduction, **options)
    assert torch.equal(by_session, by_loop)
    assert torch.equal(by_session, scaled)
    rounding = {"rounded together"} if options.get("autocast") else set()
    names = {condition.name for condition in session.guarantee(1e-5).conditions}
    assert names == {"fixed key", "no ledger path"} | rounding


def test_the_scalar_is_the_sum_of_the_losses() -> None:
    model, _, session, loader = attach()
    found = losses(model, next(iter(loader)))
    assert torch.equal(session.loss(found), found.sum())


@pytest.mark.parametrize("factor", [0.5, 2.0, 65536.0, 1.0000001, float("nan")])
def test_a_scalar_that_was_scaled_on_the_way_is_refused(factor: float) -> None:
    model, optimizer, session, loader = attach()
    loss = session.loss(losses(model, next(iter(loader))))
    with pytest.raises(ProtocolError, match="another gradient than 1") as info:
        (loss * factor).backward()
    assert "scale=1/n" in info.value.cure
    with pytest.raises(ProtocolError, match="no backward has finished"):
        optimizer.step()


def test_another_scale_than_the_declared_one_is_refused() -> None:
    model, _, session, loader = attach()
    loss = session.loss(losses(model, next(iter(loader))), scale=0.25)
    with pytest.raises(ProtocolError, match="declared scale"):
        loss.backward()


@pytest.mark.parametrize("scale", [0.0, -1.0, float("inf"), "a"])
def test_a_scale_that_is_no_positive_number_is_refused(scale: Any) -> None:
    model, _, session, loader = attach()
    with pytest.raises(ValueError, match="scale"):
        session.loss(losses(model, next(iter(loader))), scale=scale)


def test_losses_that_mix_examples_are_refused() -> None:
    model, optimizer, session, loader = attach()
    for item in loader:
        if len(item[0]) > 1:
            break
        session.backward(losses(model, item))
        optimizer.step()
    found = losses(model, item)
    with pytest.raises(CrossSampleLeakError):
        session.loss(found - found.mean())


def test_losses_of_another_shape_are_refused() -> None:
    model, _, session, loader = attach()
    found = losses(model, next(iter(loader)))
    for wrong in (found.sum(), found[:, None], found.repeat(2)):
        with pytest.raises(LossShapeError):
            session.loss(wrong)


def test_a_scalar_of_an_item_that_is_over_is_refused() -> None:
    model, optimizer, session, loader = attach()
    items = iter(loader)
    found = losses(model, next(items))
    late = session.loss(found)
    session.loss(found).backward(retain_graph=True)
    optimizer.step()
    next(items)
    with pytest.raises(Exception, match="DP"):
        late.backward()


def test_a_loss_of_the_loop_beside_the_scalar_is_still_looked_at() -> None:
    """A balance loss of inner values, or a plain mean that is added, is the loop's own."""
    model, optimizer, session, loader = attach()
    for item in loader:
        outputs = model(item[0])
        found = (outputs - item[1]).square().mean(1)
        (session.loss(found, scale=1.0) + outputs.square().mean()).backward()
        optimizer.step()
    assert "own scalar loss" in {condition.name for condition in session.guarantee(1e-5).conditions}


def test_a_mean_in_16_bits_beside_the_scalar_is_refused() -> None:
    """A mean divides by the number of examples before gradients are rounded to 16 bits, and the scalar does not."""
    model, optimizer, session, loader = attach(autocast=True)
    item = next(item for item in loader)
    outputs = model(item[0]).float()
    found = (outputs - item[1]).square().mean(1)
    (session.loss(found) + outputs.square().mean()).backward()
    with pytest.raises(Exception, match="16 bits"):
        optimizer.step()


@pytest.mark.parametrize("autocast", [False, True])
def test_a_session_tells_whether_gradients_pass_through_16_bits(autocast: bool) -> None:
    model, optimizer, session, loader = attach(autocast=autocast)
    assert not session.is_narrow
    for item in loader:
        found = losses(model, item)
        assert session.is_narrow is autocast
        session.backward(found)
        optimizer.step()


def test_without_a_loader_there_is_no_item_that_the_scalar_could_belong_to() -> None:
    model = nn.Linear(3, 2)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(1.0), sampling=PoissonSampling(0.5), expected_batch_size=4
    )
    session = privatize(model, torch.optim.SGD(model.parameters(), lr=0.1), mechanism)
    with pytest.raises(ProtocolError, match="own loader"):
        session.loss(model(torch.randn(4, 3)).square().sum(1))
