"""A registered operator under capture: one call for each example, and sums that are exact. More: extension/."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from attached import Attached, B, Model, assert_same, batch, losses, wanted
from torch import Tensor, nn

from hushgrad.capture.operators.registered import register_operator
from hushgrad.errors import CrossSampleLeakError, PrivacyUnitError

ROWS: list[int] = []
"""How many rows each forward held."""


@register_operator
class Scale(torch.autograd.Function):
    """A weight gradient that sums over examples before anybody can look."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor) -> Tensor:
        ROWS.append(x.shape[0])
        ctx.save_for_backward(x, weight)
        return x * weight

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return gradient * weight, (gradient * x).sum(0) if weight.ndim == 1 else gradient * x


@register_operator
def centred(x: Tensor, weight: Tensor) -> Tensor:
    return (x - x.mean(0)) * weight


def model(operator: Any = Scale) -> Model:
    return Model(
        lambda m, x: m.head(operator(x, m.weight).tanh()), weight=nn.Parameter(torch.randn(4)), head=nn.Linear(4, 2)
    ).double()


def test_the_sums_of_a_registered_operator_are_those_of_one_example_at_a_time() -> None:
    attached, x = Attached(model()), batch()
    losses(attached.model(x)).sum().backward()
    assert_same(attached.sums(), wanted(attached.model, lambda m, i: losses(m(x[i : i + 1])).sum()))
    attached.scope.detach()


def test_every_call_that_is_differentiated_holds_one_example() -> None:
    attached, x = Attached(model()), batch()
    ROWS.clear()
    attached.model(x)
    assert ROWS.count(1) == B
    assert set(ROWS) <= {1, B}  # of the batch, without gradients, to compare with
    attached.scope.detach()


def test_outside_of_a_private_training_it_runs_as_it_is() -> None:
    x, weight = batch(), torch.randn(4, dtype=torch.float64)
    ROWS.clear()
    assert torch.equal(Scale(x, weight), x * weight)
    assert ROWS == [B]


def test_what_ran_is_kept_by_its_name_and_what_did_not_run_is_not() -> None:
    attached = Attached(model())
    assert attached.scope.registered == set()
    attached.model(batch())
    (name,) = attached.scope.registered
    assert name.endswith("Scale")
    attached.scope.detach()


def test_an_operator_that_mixes_examples_is_refused() -> None:
    attached = Attached(model(centred))
    with pytest.raises(CrossSampleLeakError, match=r"centred: .*mixes examples"):
        attached.model(batch())
    attached.scope.detach()


def test_a_batch_on_another_axis_is_refused() -> None:
    attached = Attached(model(lambda x, w: Scale(x.unsqueeze(0), w)[0]))
    with pytest.raises(PrivacyUnitError, match="batch on axis 0"):
        attached.model(batch())
    attached.scope.detach()
