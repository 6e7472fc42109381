"""Tensors made of parameters alone: exact where they meet the batch, refused where they do not."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, B, Model, P, X, assert_same, batch, losses, refused, wanted
from private_loops import Training
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hushgrad.errors import PrivacyUnitError, UncoveredParameterUseError


class Positions(nn.Module):
    """A position embedding, whose result is made of parameters alone, and a layer."""

    def __init__(self, hook: Any = None) -> None:
        super().__init__()
        self.positions, self.layer, self.hook = nn.Embedding(3, 3), nn.Linear(3, 2), hook

    def forward(self, x: Tensor) -> Tensor:
        places = self.positions(torch.arange(3)[None])
        if self.hook is not None:
            places.register_hook(self.hook)
        return self.layer(x + places.sum(1))


def test_counting_the_operations_of_a_private_step_with_torchs_own_counter_changes_nothing() -> None:
    """FlopCounterMode hangs hooks that only look on what goes into modules and comes out of them."""
    training = Training(model=Positions(), physical=None)
    for x, y in training.loader:
        with FlopCounterMode(display=False) as counter:
            nn.functional.mse_loss(training.model(x), y).backward()
            training.optimizer.step()
        assert counter.get_total_flops() > 0
    assert training.session.steps == 3


def test_a_hook_that_may_change_the_gradient_of_a_derived_parameter_is_refused() -> None:
    training = Training(model=Positions(hook=lambda gradient: gradient * 2), physical=None)
    x, _ = next(iter(training.loader))
    with pytest.raises(UncoveredParameterUseError, match="Remove the hook"):
        training.model(x)


def test_a_weight_penalty_inside_the_forward_is_refused() -> None:
    refused(UncoveredParameterUseError, "weight_decay", lambda m, x: m.p.square().sum().expand(B, 1), X, p=P)


def test_a_penalty_that_joins_the_loss_outside_the_forward_is_refused() -> None:
    kept = []

    def forward(m: Model, x: Tensor) -> Tensor:
        kept.append(m.layer.weight.square().sum())
        return m.layer(x)

    attached = Attached(Model(forward, layer=nn.Linear(4, 2)))
    with pytest.raises(UncoveredParameterUseError, match="weight_decay"):
        (losses(attached.model(X)).sum() + kept[0]).backward()
    assert attached.pool.take() == {}


def _filled(x: Tensor, value: Tensor) -> Tensor:
    buffer = torch.zeros_like(x)
    buffer.copy_(value)
    return x + buffer


def _written_out(x: Tensor, value: Tensor) -> Tensor:
    buffer = torch.empty(4)
    torch.mul(value, 2, out=buffer)
    return x + buffer


def _through_data(x: Tensor, value: Tensor) -> Tensor:
    buffer = x.clone()
    buffer.index_copy_(1, torch.arange(4), value.expand_as(x))
    return buffer


@pytest.mark.parametrize(
    "use",
    [
        lambda x, p: x + p.mul_(2),
        lambda x, p: x + p.__iadd__(1),
        lambda x, p: x * p.fill_(1.0),
        lambda x, p: x + (p * 1).add_(x[0]),
        lambda x, p: p.__setitem__(0, 1.0) or x * p,
        _written_out,
        _through_data,
    ],
)
def test_a_parameter_changed_or_written_in_place_is_refused(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    refused(UncoveredParameterUseError, "in place|writes", lambda m, x: use(x, m.p), X, p=P)


def test_a_buffer_filled_with_a_parameter_beside_data_is_exact() -> None:
    attached = Attached(Model(lambda m, x: _filled(x, m.p).tanh(), p=nn.Parameter(torch.randn(4))).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_a_tensor_that_was_changed_through_another_one_is_refused() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        doubled = m.weight * 2
        view = doubled.view(-1)
        view /= 3
        return F.linear(x, doubled)

    refused(UncoveredParameterUseError, "in place", forward, torch.randn(B, 4), weight=nn.Parameter(torch.randn(4, 4)))


DERIVED: dict[str, Callable[[Tensor], Tensor]] = {
    "transposed": lambda w: w.T,
    "normalised": lambda w: w / w.norm(),
    "cut and joined": lambda w: torch.cat([w[:2], w[2:] * 2]),
    "of several results": lambda w: w.chunk(2)[0].repeat(2, 1),
    "changed in place": lambda w: (w * 2).add_(w.sum()),
}


@pytest.mark.parametrize("name", DERIVED)
def test_a_tensor_made_of_parameters_alone_is_used_exactly(name: str) -> None:
    derive = DERIVED[name]
    attached = Attached(Model(lambda m, x: x @ derive(m.w), w=nn.Parameter(torch.randn(4, 4))).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


PLACES = torch.tensor([[0, 1, 3, 3], [1, 0, 2, 2]])


WRITTEN: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "copied": lambda x, w: x @ _put(torch.zeros(4, 4), slice(None), w),
    "at places": lambda x, w: x @ _put(torch.ones(4, 4), (PLACES[0, :3], PLACES[1, :3]), w[0, :3]),
    "twice": lambda x, w: x @ _put(_put(torch.zeros(4, 4), 0, w[1]), 2, w[3] * 2),
    "added in place": lambda x, w: x @ torch.ones(4, 4).double().add_(w),
}


def _put(out: Tensor, index: Any, value: Tensor) -> Tensor:
    out = out.double()
    out[index] = value
    return out


@pytest.mark.parametrize("name", WRITTEN)
def test_constants_that_parameters_are_written_into_are_derived_parameters(name: str) -> None:
    use = WRITTEN[name]
    attached = Attached(Model(lambda m, x: use(x, m.w), w=nn.Parameter(torch.randn(4, 4))).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


BESIDE: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a part of a buffer": lambda x, p: _put_part(torch.zeros(2, 4), p, lambda out: x + out.sum(0)),
    "another view of it": lambda x, p: _put_view(torch.zeros(4), p, lambda view: x + view),
    "its own memory": lambda x, p: p.detach().__setitem__(slice(None), p * 2) or x * p,
    "a tensor of the batch": lambda x, p: x.mean(0).__setitem__(0, p[0]) or x * p.sum(),
}


def _put_part(out: Tensor, p: Tensor, use: Callable[[Tensor], Tensor]) -> Tensor:
    out[0][:] = p
    return use(out)


def _put_view(out: Tensor, p: Tensor, use: Callable[[Tensor], Tensor]) -> Tensor:
    view = out[:]
    out[:] = p
    return use(view)


@pytest.mark.parametrize("name", BESIDE)
def test_memory_that_a_parameter_was_written_into_is_not_used_by_another_tensor(name: str) -> None:
    use = BESIDE[name]
    refused((UncoveredParameterUseError, PrivacyUnitError), "DP30", lambda m, x: use(x, m.p), X, p=P)
