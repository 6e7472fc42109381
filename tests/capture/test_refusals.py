"""Programs whose per-example gradients cannot be seen are refused; those beside them are exact."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, B, Model, X, assert_same, batch, losses, wanted
from torch import Tensor, nn

from hushgrad.errors import (
    CrossSampleLeakError,
    HushgradError,
    PrivacyUnitError,
    PrivateBufferError,
    SparseGradientError,
    UncoveredParameterUseError,
    UnsupportedModelError,
)


def refused(
    error: type[HushgradError], match: str, forward: Callable[..., Tensor], *inputs: Tensor, **children: Any
) -> None:
    """Check that a model is refused by the end of its backward, and that nothing is recorded."""
    attached = Attached(Model(forward, **children))
    try:
        with pytest.raises(error, match=match):
            losses(attached.model(*inputs)).sum().backward()
    finally:
        attached.scope.detach()
    assert attached.pool.take() == {}
    assert all(parameter.grad is None for parameter in attached.model.parameters())


P = nn.Parameter(torch.randn(4))


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


def _constant_filled(x: Tensor, value: Tensor) -> Tensor:
    buffer = torch.zeros(4)
    buffer[:] = value
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
        _constant_filled,
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


class Square(torch.autograd.Function):
    """A custom function, which no mode can see."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * gradient


def test_a_custom_autograd_function_is_followed_through_the_operators_in_it() -> None:
    model = Model(lambda m, x: x + m.b(Square.apply(m.a(x))), a=nn.Linear(4, 4), b=nn.Linear(4, 4)).double()
    attached = Attached(model)
    x = batch()
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


class Hidden(torch.autograd.Function):
    """A custom function that computes outside torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tensor(x.tolist())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


class OwnLinear(torch.autograd.Function):
    """A custom function with a weight gradient of its own."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x @ weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[None, Tensor]:
        (x,) = ctx.saved_tensors
        return None, x.T @ gradient


def test_data_that_was_computed_out_of_sight_is_refused_rather_than_taken_for_a_constant() -> None:
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    match = "custom autograd function"
    refused(PrivacyUnitError, match, lambda m, x: m.b(Hidden.apply(m.a(x))), X, **layers)
    refused(PrivacyUnitError, match, lambda m, x: x + m.b(Hidden.apply(m.a(x))), X, **layers)
    refused(PrivacyUnitError, match, lambda m, x: Hidden.apply(m.a(x)) * m.p, X, a=layers["a"], p=P)
    refused(UncoveredParameterUseError, "meeting the batch", lambda m, x: m.a(Hidden.apply(x)), X, a=nn.Linear(4, 4))


def test_a_custom_function_that_forms_a_weight_gradient_leaves_it_in_grad_for_all_to_see() -> None:
    attached = Attached(Model(lambda m, x: OwnLinear.apply(x, m.w), w=nn.Parameter(torch.randn(4, 3))))
    losses(attached.model(X)).sum().backward()
    assert attached.model.get_parameter("w").grad is not None
    attached.scope.detach()


def test_a_tensor_kept_from_an_earlier_forward_is_refused() -> None:
    kept: list[Tensor] = []

    def forward(m: Model, x: Tensor) -> Tensor:
        kept.append(m.a(x))
        return m.b(kept[0])

    attached = Attached(Model(forward, a=nn.Linear(4, 4), b=nn.Linear(4, 4)))
    losses(attached.model(X)).sum().backward()
    attached.pool.clear()
    with pytest.raises(PrivacyUnitError, match="outside this forward"):
        losses(attached.model(X)).sum().backward()
    attached.scope.detach()


LAYERS: dict[str, tuple[type[HushgradError], nn.Module, Tensor]] = {
    "batch norm": (CrossSampleLeakError, nn.BatchNorm1d(4), X),
    "batch norm without affine": (CrossSampleLeakError, nn.BatchNorm1d(4, affine=False), X),
    "instance norm": (PrivateBufferError, nn.InstanceNorm1d(3, track_running_stats=True), torch.randn(B, 3, 4)),
    "max_norm": (UnsupportedModelError, nn.Embedding(9, 4, max_norm=1.0), torch.arange(B)),
    "scale_grad_by_freq": (CrossSampleLeakError, nn.Embedding(9, 4, scale_grad_by_freq=True), torch.arange(B)),
    "sparse": (SparseGradientError, nn.Embedding(9, 4, sparse=True), torch.arange(B)),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_that_mixes_examples_or_shows_them_is_refused(name: str) -> None:
    error, layer, x = LAYERS[name]
    head = nn.Parameter(torch.ones(()))
    refused(error, error.code, lambda m, x: m.layer(x) * m.head, x, layer=layer, head=head)


MIXING: dict[str, Callable[[Model, Tensor], Tensor]] = {
    "mean over the batch": lambda m, x: m.layer(x - x.mean(0)),
    "softmax over the batch": lambda m, x: m.layer(x.softmax(0)),
    "flipped and back": lambda m, x: m.layer(m.layer(x).flip(0)).flip(0),
    "permuted": lambda m, x: m.layer(m.layer(x)[torch.randperm(B)]),
    "rolled": lambda m, x: m.layer(x.roll(1, 0)),
    "attention across the batch": lambda m, x: m.layer(x @ x.T @ x),
    "rows that are not the batch": lambda m, x: m.layer(x.reshape(2, -1)[:, :4]),
    "one row": lambda m, x: m.layer(x.sum(0, keepdim=True)).expand(B, -1),
    "transposed to the wrong place": lambda m, x: m.layer(F.pad(x, (0, 1)).T[:4].T[:, :4].reshape(-1).view(4, B).T),
    "sorted over the batch": lambda m, x: m.layer(x.sort(0).values),
    "doubled rows": lambda m, x: m.layer(torch.cat([x, x])).view(2, B, 4).sum(0),
    "pairs": lambda m, x: m.layer(x[:, None] - x[None]).sum(1),
}


@pytest.mark.parametrize("name", MIXING)
def test_a_parameter_used_where_examples_cannot_be_told_apart_is_refused(name: str) -> None:
    refused(PrivacyUnitError, "told apart|rows", MIXING[name], torch.randn(B, 4), layer=nn.Linear(4, 4))


@pytest.mark.parametrize("steps", [3, B])
def test_time_and_batch_may_change_places_also_where_they_are_equally_many(steps: int) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.a(x.transpose(0, 1)) + m.places[:, None]
        h = m.norm(h).tanh().permute(1, 2, 0)
        return m.b(h.movedim(2, 0)).sum(0)

    model = Model(
        forward, a=nn.Linear(4, 4), norm=nn.LayerNorm(4), b=nn.Linear(4, 3), places=nn.Parameter(torch.randn(steps, 4))
    ).double()
    attached = Attached(model)
    x = torch.randn(B, steps, 4, dtype=torch.float64)
    losses(model(x)).sum().backward()
    assert_same(attached.sums(), wanted(model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_a_model_given_another_number_of_rows_than_records_is_refused(attached: Attached) -> None:
    for rows in (2 * B, B - 1, 1):
        with pytest.raises(PrivacyUnitError, match=f"saw {rows} rows for {B} examples"):
            losses(attached.model(torch.randn(rows, 4, dtype=torch.float64))).sum().backward()
    assert attached.pool.take() == {}


def test_a_backward_whose_number_of_examples_nobody_declared_is_refused(model: nn.Module) -> None:
    attached = Attached(model, batch_size=None)
    with pytest.raises(PrivacyUnitError, match="outside"):
        losses(model(batch())).sum().backward()
    attached.scope.detach()


def test_a_broken_example_in_the_fallback_by_masks_reaches_no_other_example() -> None:
    """A recurrent layer with dropout cannot be run on slices; NaN in one example must stay there."""
    torch.manual_seed(3)
    model = Model(
        lambda m, x: m.head(m.layer(x)[0]), layer=nn.LSTM(4, 3, 2, batch_first=True, dropout=0.4), head=nn.Linear(3, 2)
    )
    attached = Attached(model)
    x = torch.randn(B, 6, 4)
    sums = []
    for value in (1.0, torch.nan):
        x[2, 3, 1] = value
        torch.manual_seed(4)  # the same dropout
        out = losses(model(x))
        keep = torch.ones(B)
        keep[2] = 0.0 if value == 1.0 else 1.0
        (out * keep).sum().backward()
        sums.append(attached.sums())
    assert_close_float32(*sums)
    assert any(value.abs().max() > 0 for value in sums[0].values())
    attached.scope.detach()


def assert_close_float32(first: dict[str, Tensor], second: dict[str, Tensor]) -> None:
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, rtol=1e-5, atol=1e-6)


class Squared(torch.autograd.Function):
    """A custom function of a weight, as some adapters have it."""

    @staticmethod
    def forward(ctx: Any, weight: Tensor) -> Tensor:
        ctx.save_for_backward(weight)
        return weight * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return 2 * ctx.saved_tensors[0] * gradient


def test_a_custom_autograd_function_of_a_parameter_is_refused_and_named() -> None:
    weight = nn.Parameter(torch.randn(4, 4))
    refused(
        UncoveredParameterUseError,
        "weight: is used in the forward by Squared",
        lambda m, x: F.linear(x, Squared.apply(m.weight) * 2),
        torch.randn(B, 4),
        weight=weight,
    )


def test_a_tensor_that_was_changed_through_another_one_is_refused() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        doubled = m.weight * 2
        view = doubled.view(-1)
        view /= 3
        return F.linear(x, doubled)

    refused(UncoveredParameterUseError, "in place", forward, torch.randn(B, 4), weight=nn.Parameter(torch.randn(4, 4)))
