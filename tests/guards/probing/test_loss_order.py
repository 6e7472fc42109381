"""A record's loss, gradient and inputs do not follow its place in the batch."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from programs import TARGETS, B, K, program
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.data import DataLoader, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.loss_order import untold_of_places
from hushgrad.guards.probing.loss_trace import LossTrace

Losses = Callable[[Tensor, Tensor], Tensor]


def ce(output: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(output, targets, reduction="none")


def halved(losses: Tensor) -> Tensor:
    losses = losses.clone()
    losses[::2] = 0
    return losses


class ByIndex(torch.autograd.Function):
    """Its gradient follows the number of the row."""

    @staticmethod
    def forward(ctx: Any, values: Tensor) -> Tensor:
        return values.clone()

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return gradients * (torch.arange(len(gradients)) % 2)[:, None]


class ByColumn(ByIndex):
    """Its gradient follows the number of the column."""

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> Tensor:
        return gradients * (torch.arange(gradients.shape[1]) % 2)


def sorted_noise(output: Tensor) -> Tensor:
    return torch.rand(len(output)).sort().values


def placed_noise(output: Tensor) -> Tensor:
    noise = torch.randn(len(output))
    noise[::2] = 0
    return noise


FOLLOWING: dict[str, Losses] = {
    "a range of the rows": lambda o, y: ce(o, y) * (torch.arange(len(y)) % 2),
    "a ramp over the rows": lambda o, y: ce(o, y) * torch.linspace(0.1, 1, len(y)),
    "a sum of ones so far": lambda o, y: ce(o, y) * (torch.ones_like(y).cumsum(0) % 2),
    "the number of a row": lambda o, y: torch.stack([loss * (1 + i % 2) for i, loss in enumerate(ce(o, y))]),
    "every second row": lambda o, y: halved(ce(o, y)),
    "the first half": lambda o, y: torch.cat([ce(o, y)[: len(y) // 2] * 0.1, ce(o, y)[len(y) // 2 :]]),
    "alternating signs": lambda o, y: ce(torch.cat([a * (1 - 2 * (i % 2)) for i, a in enumerate(o.split(1))]), y),
    "targets by the row": lambda o, y: ce(o, (y + torch.arange(len(y))) % K),
    "a custom gradient by the row": lambda o, y: ce(ByIndex.apply(o), y),
}

SAME: dict[str, Losses] = {
    "constant weights": lambda o, y: ce(o, y) * torch.full((len(y),), 0.5),
    "weights of classes": lambda o, y: ce(o, y) * torch.arange(1.0, K + 1)[y],
    "as many weights as rows": lambda o, y: ce(o, y) * torch.arange(1.0, B + 1)[y],
    "one for each row": lambda o, y: torch.stack([loss * 2 for loss in ce(o, y)]),
    "the halves alike": lambda o, y: torch.cat([ce(o, y)[: len(y) // 2] * 0.1, ce(o, y)[len(y) // 2 :] * 0.1]),
    "every second column": lambda o, y: ce(torch.cat([o[:, ::2], o[:, 1::2]], 1), y),
    "a custom gradient by the column": lambda o, y: ce(ByColumn.apply(o), y),
    "noise": lambda o, y: ce(o + 0.1 * torch.randn(o.shape), y),
    "noise as the outputs": lambda o, y: ce(o + torch.randn_like(o) * 0.1, y),
    "noise for each row alone": lambda o, y: ce(torch.stack([row + torch.randn(K) for row in o]), y),
    "noise for each column": lambda o, y: (o.repeat(1, 2) * torch.randn(B)).square().sum(1),
    "masks": lambda o, y: ce(o * (torch.rand(o.shape) > 0.3), y),
    "dropout": lambda o, y: ce(F.dropout(o, 0.4), y),
    "steps of a diffusion": lambda o, y: (o * torch.rand(len(o))[:, None] + torch.randn(o.shape)).square().sum(1),
    "a mean": lambda o, y: F.cross_entropy(o, y),
}

MADE: dict[str, Losses] = {
    "noise of NumPy's": lambda o, y: ce(o + torch.from_numpy(np.random.randn(*o.shape)).float(), y),
    "numbers in a list": lambda o, y: ce(o, y) * torch.tensor([1.0 + i % 2 for i in range(len(y))]),
    "random numbers in a list": lambda o, y: ce(o, y) * torch.tensor([random.random() for _ in range(len(y))]),
    "random numbers": lambda o, y: torch.stack([loss * random.random() for loss in ce(o, y)]),
    "noise that was sorted": lambda o, y: ce(o, y) * sorted_noise(o),
    "a scale of noise by the row": lambda o, y: ce(o + torch.randn(o.shape) * torch.arange(len(o))[:, None], y),
    "noise that was set at places": lambda o, y: ce(o, y) * placed_noise(o),
}


@pytest.mark.parametrize("name", FOLLOWING)
def test_what_follows_the_place_of_a_record_is_refused_by_call_and_line(name: str) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"\(test_loss_order\.py, line \d+\): .* in another place") as e:
        untold_of_places(program(FOLLOWING[name], is_rows=True))
    assert "enumerate" in e.value.cure


@pytest.mark.parametrize("name", SAME)
def test_losses_that_move_with_their_records_are_told_to_do_so(name: str) -> None:
    torch.manual_seed(0)
    assert untold_of_places(program(SAME[name], is_rows=name != "a mean")) == ()


@pytest.mark.parametrize("name", MADE)
def test_values_made_in_python_for_each_row_are_said_and_not_refused(name: str) -> None:
    torch.manual_seed(0)
    [found] = untold_of_places(program(MADE[name], is_rows=True))
    assert "for each row anew" in found


def test_gradients_of_sixteen_bits_may_be_rounded_otherwise_in_another_place() -> None:
    def narrow(output: Tensor, targets: Tensor) -> Tensor:
        weights = torch.full((K, K), 0.37)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            return ce((output @ weights).float(), targets)

    assert untold_of_places(program(narrow, is_rows=True)) == ()


def test_rows_that_are_almost_sure_differ_by_rounding_alone() -> None:
    assert untold_of_places(program(lambda o, y: ce(F.one_hot(y, K) * 14 + 0.01 * o, y), is_rows=True)) == ()


@pytest.mark.parametrize("size", [5, 6])
def test_rows_that_the_loop_puts_into_another_order_are_said(size: int) -> None:
    item = torch.randn(size, 2, generator=torch.Generator().manual_seed(0))
    trace = LossTrace(size, item, {})
    try:
        given = item.flip(0)
        trace.given(((given,), {}), ())
        output = (given * 1).requires_grad_() * 1
        trace.returned(output)
        trace.loss(output.square().sum(1), is_rows=True)
    finally:
        trace.end()
    [found] = untold_of_places(trace.program)
    assert "order of rows" in found


# In training ---------------------------------------------------------------------------------------------------------


class Weighed(nn.Module):
    """A linear model whose rows are multiplied by a number that each is given."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, K)

    def forward(self, inputs: Tensor, weights: Tensor) -> Tensor:
        return self.layer(inputs) * weights[:, None]


def trained(weights: Callable[[Tensor], Tensor]) -> tuple[nn.Module, set[str]]:
    """Train one step; return the model and what was taken on trust."""
    torch.manual_seed(0)
    model, data = Weighed(), TensorDataset(torch.randn(B, 2), TARGETS)
    optimizer: Any = torch.optim.SGD(model.parameters(), lr=0.1)
    engine = PrivacyEngine(test_key=1)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(data, batch_size=B),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
    )
    for inputs, targets in loader:
        engine.session.backward(ce(model(inputs, weights(inputs)), targets))
        optimizer.step()
    names = {condition.name for condition in engine.guarantee(1e-5).conditions}
    return model, names - {"fixed key", "no ledger path"}


@pytest.mark.parametrize(
    "weights",
    [
        lambda x: torch.arange(len(x)) % 2,
        lambda x: torch.from_numpy(np.arange(len(x)) % 2),
        lambda x: x.new_ones(len(x)).cumsum(0) % 2,
    ],
)
def test_numbers_of_rows_that_the_model_is_given_are_on_trust(weights: Callable[[Tensor], Tensor]) -> None:
    assert trained(weights)[1] & {"not examined", "values read by the loop"}


@pytest.mark.parametrize(
    "weights", [lambda x: torch.rand(len(x)), lambda x: x[:, 0], lambda x: torch.ones(len(x)), lambda x: x.sum(1)]
)
def test_noise_and_the_rows_own_values_are_given_to_the_model_without_a_condition(
    weights: Callable[[Tensor], Tensor],
) -> None:
    assert trained(weights)[1] == set()


def test_inputs_multiplied_by_the_number_of_their_row_are_refused_before_the_first_release() -> None:
    with pytest.raises(CrossSampleLeakError, match="what the model is given did not move"):
        trained(lambda x: x[:, 0] * torch.arange(len(x)))
