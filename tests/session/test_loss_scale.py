"""The loss scale for float16: it keeps small gradients, changes no other, and nothing of an overflow comes back."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from narrow_loops import FP16, Spy, all_in_autocast, attach, autocast, model_of, one_at_a_time, records, trained
from torch import Tensor, nn

from hushgrad import DPSGD, FlatClipping, PoissonSampling, PrivacyEngine, Session, privatize
from hushgrad.errors import InvalidArgumentError, ProtocolError, UnsupportedOptimizerError


def test_a_loss_scale_keeps_gradients_that_float16_would_lose(spy: Spy) -> None:
    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with autocast(FP16):
            out = model(x)
        return (out.float() * 1e-9).mean()

    x, y = records(8)
    lost = trained(loss, model_of(), x, y)
    assert not spy.total().any()
    assert "loss scale" not in lost
    spy.sums.clear()
    kept = trained(loss, model_of(), x, y, loss_scale=2.0**15)
    oracle = one_at_a_time(loss, model_of(), x, y, scale=2.0**15)
    assert (spy.total() - oracle).norm() <= 1e-2 * oracle.norm()
    assert "loss scale" not in kept  # a constant is no trust


WAYS: dict[str, Callable[[Session, nn.Module, Tensor, Tensor], Any]] = {
    "own": lambda session, model, x, y: all_in_autocast(FP16)(model, x, y).backward(),  # type: ignore[no-untyped-call]
    "per_example": lambda session, model, x, y: session.per_example(nn.CrossEntropyLoss())(
        half(model, x), y
    ).backward(),
    "session": lambda session, model, x, y: session.backward(F.cross_entropy(half(model, x), y, reduction="none")),
    "loss": lambda session, model, x, y: session.loss(F.cross_entropy(half(model, x), y, reduction="none")).backward(),
}


def half(model: nn.Module, x: Tensor) -> Tensor:
    with autocast(FP16):
        return model(x).float()  # type: ignore[no-any-return]


@pytest.mark.parametrize("reduction", ["mean", "sum"])
@pytest.mark.parametrize("way", WAYS)
def test_a_loss_scale_changes_nothing_where_nothing_is_lost(spy: Spy, way: str, reduction: str) -> None:
    """Guarantee: a power of two, so that it changes no rounding but what overflows and what vanishes."""
    x, y = records(9)
    totals = []
    for scale in (1.0, 2.0**8):
        spy.sums.clear()
        model = model_of()
        optimizer, session, loader = attach(model, x, y, loss_scale=scale, reduction=reduction)
        for a, b in loader:
            if way == "own" and reduction == "sum":
                with autocast(FP16):
                    F.cross_entropy(model(a), b, reduction="sum").backward()  # type: ignore[no-untyped-call]
            else:
                WAYS[way](session, model, a, b)
            optimizer.step()
        totals.append(spy.total())
    assert (totals[1] - totals[0]).norm() <= 2e-3 * totals[0].norm()


@pytest.mark.parametrize("way", WAYS)
def test_an_example_whose_gradient_overflows_contributes_nothing_and_the_step_is_released(spy: Spy, way: str) -> None:
    x, y = records(9)
    x[4] = 6e4  # float16 holds it, and no gradient that it is multiplied by
    model = model_of()
    with torch.no_grad():
        model[2].weight.mul_(50)  # type: ignore[index,operator]
    others = [i for i in range(9) if i != 4]
    oracle = one_at_a_time(all_in_autocast(FP16), copy.deepcopy(model), x[others], y[others], scale=2.0**10)

    class Steep(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return self.inner(x) * torch.where(x[:, :1] > 1e3, 6e4, 1.0)  # type: ignore[no-any-return]

    steep = Steep(model)
    optimizer, session, loader = attach(steep, x, y, loss_scale=2.0**10)
    for a, b in loader:
        WAYS[way](session, steep, a, b)
        optimizer.step()
    assert session.steps == 1
    assert session.last_step_updated
    assert (spy.total() - oracle).norm() <= 1e-2 * oracle.norm()


def test_a_scale_may_follow_the_number_of_steps_and_is_told_as_trust(spy: Spy) -> None:
    asked: list[int] = []

    def scale(steps: int) -> float:
        asked.append(steps)
        return 2.0 ** (4 + steps)

    x, y = records(6)
    optimizer, session, loader = attach(model := model_of(), x, y, loss_scale=scale)
    for _ in range(3):
        for a, b in loader:
            all_in_autocast(FP16)(model, a, b).backward()  # type: ignore[no-untyped-call]
            optimizer.step()
    assert asked == [0, 1, 2]
    assert "loss scale" in {condition.name for condition in session.guarantee(1e-5).conditions}


@pytest.mark.parametrize("scale", [0, 3.0, -2.0, 2.0**16, float("nan"), float("inf"), True, "2", None])
def test_a_loss_scale_that_is_no_power_of_two_that_float16_holds_is_refused(scale: Any) -> None:
    x, y = records(4)
    with pytest.raises(InvalidArgumentError, match="loss_scale"):
        attach(model_of(), x, y, loss_scale=scale)
    _, _, loader = attach(model_of(), x, y, loss_scale=lambda steps: scale)
    with pytest.raises(InvalidArgumentError, match="loss_scale"):
        next(iter(loader))


def test_a_scaler_that_follows_overflows_is_refused_with_the_constant_in_its_place() -> None:
    x, y = records(8)
    model = model_of()
    optimizer, session, loader = attach(model, x, y)
    scaler = torch.amp.GradScaler("cpu")
    a, b = next(iter(loader))
    scaler.scale(all_in_autocast(FP16)(model, a, b)).backward()  # type: ignore[no-untyped-call]
    with pytest.raises(UnsupportedOptimizerError, match=r"loss_scale=2\.0\*\*10"):
        scaler.step(optimizer)
    assert session.steps == 0


def test_a_step_that_is_left_out_because_the_loss_overflowed_is_refused() -> None:
    x, y = records(8)
    x[3] = 3e38
    model = model_of()
    _, session, loader = attach(model, x, y)
    items = iter(loader)
    a, b = next(items)
    loss = all_in_autocast(FP16)(model, a, b)
    assert not torch.isfinite(loss)  # and the loop goes on to the next item
    with pytest.raises(ProtocolError):
        next(items)
    assert session.steps == 0


def test_an_engine_hands_the_scale_on_and_refuses_it_where_it_is_no_number() -> None:
    x, y = records(8)
    data = torch.utils.data.DataLoader(torch.utils.data.TensorDataset(x, y), batch_size=4)
    for scale, refused in ((2.0**10, False), (1000.0, True)):
        engine, model = PrivacyEngine(loss_scale=scale), model_of()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        if refused:
            with pytest.raises(InvalidArgumentError, match="power of two"):
                engine.make_private(
                    module=model, optimizer=optimizer, data_loader=data, noise_multiplier=1.0, max_grad_norm=1.0
                )
            continue
        engine.make_private(
            module=model, optimizer=optimizer, data_loader=data, noise_multiplier=1.0, max_grad_norm=1.0
        )
        assert engine.session._parts.loss_scale.at(0) == scale
        engine.session.close()


def test_a_declared_batch_is_scaled_and_scaled_back(spy: Spy) -> None:
    x, y = records(7)
    totals = []
    for scale in (1.0, 2.0**8):
        spy.sums.clear()
        model = model_of()
        optimizer, session = declared(model, len(x), scale)
        session.backward(F.cross_entropy(half(model, x), y, reduction="none"))
        optimizer.step()
        session.close()
        totals.append(spy.total())
    assert (totals[1] - totals[0]).norm() <= 2e-3 * totals[0].norm()


def declared(model: nn.Module, count: int, scale: float) -> tuple[Any, Session]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    mechanism = DPSGD(
        noise_multiplier=1.0, clipping=FlatClipping(0.3), sampling=PoissonSampling(1.0), expected_batch_size=count
    )
    return optimizer, privatize(model, optimizer, mechanism, loss_scale=scale)
