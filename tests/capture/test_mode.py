"""The mode that sees every call of a forward: a use of a parameter is captured, and what hides one is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, B, Model, P, X, assert_same, batch, losses, refused, wanted
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from hushgrad.errors import HushgradError, PrivacyUnitError, UncoveredParameterUseError


def test_no_parameter_receives_an_ordinary_gradient(attached: Attached) -> None:
    losses(attached.model(batch())).sum().backward()
    assert all(parameter.grad is None for parameter in attached.model.parameters())
    assert attached.pool.backwards == 1


def test_a_gradient_with_respect_to_parameters_is_refused_by_torch(attached: Attached) -> None:
    with pytest.raises(RuntimeError, match="not have been used in the graph"):
        torch.autograd.grad(losses(attached.model(batch())).sum(), list(attached.model.parameters()))


@pytest.mark.filterwarnings("ignore:There is a performance drop")
@pytest.mark.parametrize(
    "block",
    [
        nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)),
        nn.Sequential(nn.PReLU(4), nn.LayerNorm(4)),
        nn.Sequential(nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), nn.Tanh()),
        nn.Bilinear(4, 4, 4),
    ],
    ids=["linear", "prelu and norm", "weight norm", "bilinear"],
)
def test_checkpointing_that_recomputes_a_block_gives_the_same_sums(block: nn.Module) -> None:
    block = copy.deepcopy(block).double()

    def forward(m: Model, x: Tensor) -> Tensor:
        inner = (lambda h: m.block(h, h)) if isinstance(m.block, nn.Bilinear) else m.block
        return m.head(checkpoint(inner, m.stem(x), use_reentrant=False))

    attached = Attached(Model(forward, stem=nn.Linear(4, 4), block=block, head=nn.Linear(4, 2)).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_reentrant_checkpointing_of_the_whole_model_gives_the_same_sums(attached: Attached) -> None:
    x = batch().requires_grad_()
    losses(checkpoint(attached.model, x, use_reentrant=True)).sum().backward()
    y = x.detach()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(y[i : i + 1])).sum()))


def test_reentrant_checkpointing_inside_the_model_gives_the_same_sums() -> None:
    recompute = [True]

    def forward(m: Model, x: Tensor) -> Tensor:
        h = m.stem(x)
        return m.head((checkpoint(m.block, h, use_reentrant=True) if recompute[0] else m.block(h)).tanh())

    attached = Attached(Model(forward, stem=nn.Linear(4, 4), block=nn.Linear(4, 4), head=nn.Linear(4, 2)).double())
    x = batch()
    losses(attached.model(x)).sum().backward()
    recompute[0] = False
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_a_parameter_used_outside_the_forward_gets_an_ordinary_gradient(attached: Attached) -> None:
    weight = next(attached.model.parameters())
    (losses(attached.model(batch())).sum() + weight.square().sum()).backward()
    assert weight.grad is not None


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


class Hidden(torch.autograd.Function):
    """A custom function that computes outside torch."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return torch.tensor(x.tolist())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def test_data_that_was_computed_out_of_sight_is_refused_rather_than_taken_for_a_constant() -> None:
    layers = {"a": nn.Linear(4, 4), "b": nn.Linear(4, 4)}
    match = "custom autograd function"
    refused(PrivacyUnitError, match, lambda m, x: m.b(Hidden.apply(m.a(x))), X, **layers)
    refused(PrivacyUnitError, match, lambda m, x: x + m.b(Hidden.apply(m.a(x))), X, **layers)
    refused(PrivacyUnitError, match, lambda m, x: Hidden.apply(m.a(x)) * m.p, X, a=layers["a"], p=P)
    refused(UncoveredParameterUseError, "meeting the batch", lambda m, x: m.a(Hidden.apply(x)), X, a=nn.Linear(4, 4))


def test_a_view_of_a_parameter_that_is_read_without_gradients_is_a_constant() -> None:
    """torch says of such a view that it requires gradients; relative position tables are read so."""

    def forward(m: Model, x: Tensor) -> Tensor:
        with torch.no_grad():
            turned = m.w.t()[(x[:, :2] > 0).long()].sum(1)
        return (x @ m.w) * turned

    model = Model(forward, w=nn.Parameter(torch.randn(4, 4))).double()
    attached, x = Attached(model), torch.randn(B, 4, dtype=torch.float64)
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


@pytest.mark.parametrize("use", [lambda x, view: x @ view, lambda x, view: (x @ view) * view.sum()])
def test_such_a_view_that_is_used_with_gradients_is_refused(use: Callable[[Tensor, Tensor], Tensor]) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        with torch.no_grad():
            turned = m.w.t()
        return use(x @ m.w, turned)

    refused(HushgradError, "DP30", forward, torch.randn(B, 4), w=nn.Parameter(torch.randn(4, 4)))


def test_data_read_without_gradients_by_such_a_view_are_still_data() -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        with torch.no_grad():
            mixed = (x @ m.w.t()).mean(0)
        return x @ m.w + mixed

    refused(PrivacyUnitError, "mean", forward, torch.randn(B, 4), w=nn.Parameter(torch.randn(4, 4)))
