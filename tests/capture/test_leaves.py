"""Parameters as capture holds them, and per-example gradients carried back to them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.capture import leaves
from hushgrad.capture.leaves import TrackedTensor, batched_vjp, distinct_parameters
from hushgrad.errors import UncoveredParameterUseError
from hushgrad.gradients.dense import Dense


class NoBatchingRule(torch.autograd.Function):
    """A square whose backward cannot be vectorised."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return x * x

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return 2 * x * torch.tensor(gradient.tolist(), dtype=x.dtype)


def parameter(*shape: int) -> TrackedTensor:
    return TrackedTensor.of_parameter("p", torch.nn.Parameter(torch.randn(*shape, dtype=torch.float64)))


@pytest.mark.parametrize("budget", [1, 200, 1 << 28])
def test_rows_go_back_to_parameters_one_example_at_a_time(monkeypatch: pytest.MonkeyPatch, budget: int) -> None:
    monkeypatch.setattr(leaves, "BATCHED_VJP_BYTES", budget)
    first, second = (
        parameter(3, 4),
        TrackedTensor.of_parameter("q", torch.nn.Parameter(torch.randn(4, dtype=torch.float64))),
    )
    output = (first.graph * second.graph).sin().sum(1)
    rows = torch.randn(7, 3, dtype=torch.float64)
    found = dict(batched_vjp(output, [first, second], rows))
    for i, row in enumerate(rows):
        wanted = torch.autograd.grad(output, [first.graph, second.graph], row, retain_graph=True)
        torch.testing.assert_close(found["p"].per_example()[i], wanted[0])
        torch.testing.assert_close(found["q"].per_example()[i], wanted[1])


def test_a_backward_that_cannot_be_vectorised_is_run_for_each_example() -> None:
    leaf = parameter(4)
    rows = torch.randn(3, 4, dtype=torch.float64)
    ((_, found),) = batched_vjp(NoBatchingRule.apply(leaf.graph), [leaf], rows)
    torch.testing.assert_close(found.per_example(), 2 * leaf.value * rows)


def test_a_parameter_that_an_output_does_not_depend_on_gets_zeros() -> None:
    used, unused = (
        parameter(2),
        TrackedTensor.of_parameter("q", torch.nn.Parameter(torch.randn(5, dtype=torch.float64))),
    )
    found = dict(batched_vjp(used.graph * 2, [used, unused], torch.ones(3, 2, dtype=torch.float64)))
    assert torch.equal(found["q"].per_example(), torch.zeros(3, 5, dtype=torch.float64))


def test_one_broken_row_stays_in_its_row() -> None:
    leaf = parameter(2, 2)
    rows = torch.randn(3, 2, dtype=torch.float64)
    rows[1, 0] = torch.nan
    ((_, found),) = batched_vjp((leaf.graph * 3).sum(1), [leaf], rows)
    assert torch.isfinite(found.per_example()).flatten(1).all(1).tolist() == [True, False, True]


def test_an_ordinary_backward_into_a_local_graph_raises_and_names_the_parameter() -> None:
    """Guarantee: a gradient that would be lost in a local graph raises instead."""
    leaf = parameter(3)
    with pytest.raises(UncoveredParameterUseError, match="DP305 p:"):
        (leaf.graph * 2).sum().backward()


def test_a_leaf_shares_the_values_of_its_parameter_and_not_its_graph() -> None:
    weight = torch.nn.Parameter(torch.randn(3))
    leaf = TrackedTensor.of_parameter("w", weight)
    assert leaf.value.data_ptr() == leaf.graph.data_ptr() == weight.data_ptr()
    assert not leaf.value.requires_grad
    assert leaf.graph.is_leaf
    assert leaf.to_parameters(Dense(torch.ones(2, 3)))[0][0] == "w"


def test_the_parameters_under_derived_leaves_are_named_once() -> None:
    first, second = parameter(2), TrackedTensor.of_parameter("q", torch.nn.Parameter(torch.randn(2)))
    derived = TrackedTensor("sum", first.value, first.graph * 2, (first, second))
    assert [leaf.name for leaf in distinct_parameters([first, derived, second])] == ["p", "q"]
