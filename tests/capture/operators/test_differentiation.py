"""A gradient by a parameter that is asked for inside the forward is refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from attached import Attached, Model
from torch import Tensor, nn

from hushgrad.errors import UncoveredParameterUseError

B = 4


@pytest.mark.parametrize(
    "ask",
    [
        lambda loss, weight: torch.autograd.grad(loss, weight),
        lambda loss, weight: torch.autograd.backward(loss, inputs=[weight]),
        lambda loss, weight: loss.backward(inputs=[weight]),
    ],
    ids=["grad", "backward", "Tensor.backward"],
)
def test_a_gradient_by_a_parameter_inside_the_forward_is_refused(ask: Callable[..., Any]) -> None:
    def forward(m: Model, x: Tensor) -> Tensor:
        ask(m.layer(x).sum(), m.layer.weight)
        return m.layer(x)  # type: ignore[no-any-return]

    attached = Attached(Model(forward, layer=nn.Linear(3, 2)), B)
    with pytest.raises(UncoveredParameterUseError, match="inside the forward") as raised:
        attached.model(torch.randn(B, 3))
    assert raised.value.cure.startswith("Leave out the inner gradient step")
    assert all(parameter.grad is None for parameter in attached.model.parameters())
    attached.scope.detach()
