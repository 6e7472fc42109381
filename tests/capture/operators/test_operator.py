"""One captured call: its data are differentiated as ever, its parameters are recorded, and nothing twice."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached import Attached, B, Model, batch, losses
from torch import Tensor, nn


def test_a_first_layer_forms_no_input_gradient(attached: Attached, monkeypatch: pytest.MonkeyPatch) -> None:
    from hushgrad.capture.operators.linear import Linear

    needed = []
    original = Linear.input_gradients

    def seen(self: Linear, saved: Any, gradient: Tensor, wanted: Any) -> Any:
        needed.append(bool(wanted[0]))
        return original(self, saved, gradient, wanted)

    monkeypatch.setattr(Linear, "input_gradients", seen)
    losses(attached.model(batch())).sum().backward()
    assert needed == [True, False]


def test_an_input_that_wants_its_gradient_gets_the_ordinary_one(attached: Attached) -> None:
    x = batch().requires_grad_()
    losses(attached.model(x)).sum().backward()
    again = x.detach().clone().requires_grad_()
    losses(copy.deepcopy(attached.model)(again)).sum().backward()
    torch.testing.assert_close(x.grad, again.grad)


def test_a_gradient_with_respect_to_inputs_is_an_ordinary_call_and_records_nothing(attached: Attached) -> None:
    x = batch().requires_grad_()
    (found,) = torch.autograd.grad(losses(attached.model(x)).sum(), x)
    (ordinary,) = torch.autograd.grad(losses(copy.deepcopy(attached.model)(x)).sum(), x)
    torch.testing.assert_close(found, ordinary)
    assert attached.pool.backwards == 0
    assert attached.pool.take() == {}


@pytest.mark.parametrize("loss", [lambda out: out.sum(), lambda out: out.square().sum()], ids=["linear", "square"])
@pytest.mark.parametrize("layer", [nn.Bilinear(4, 4, 2)], ids=repr)
def test_a_gradient_penalty_through_an_operator_without_that_form_raises_and_is_never_dropped(
    layer: nn.Module, loss: Callable[[Tensor], Tensor]
) -> None:
    attached = Attached(
        Model(lambda m, x: m.layer(x, x) if isinstance(m.layer, nn.Bilinear) else m.layer(x), layer=layer)
    )
    x = torch.randn(B, 4, requires_grad=True)
    out = attached.model(x)
    (gradient,) = torch.autograd.grad(loss(out), x, create_graph=True)
    with pytest.raises(RuntimeError, match="DP305"):
        (loss(out) + gradient.square().sum()).backward()
    attached.scope.detach()
