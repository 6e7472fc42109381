"""One call run again, on slices or behind masks: each example's gradient is its own, and a broken one stays there."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from attached import Attached, B, Model, losses
from torch import Tensor, nn

from hushgrad.capture.leaves import TrackedTensor
from hushgrad.capture.operators.replay import RandomState, Replay, measured_axis
from hushgrad.torch_internals import tree_flatten


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


def called(func: Callable[[Tensor, Tensor], Tensor], x: Tensor, weight: Tensor, axis: int | None = 0) -> Replay:
    flat, spec = tree_flatten(((x, weight), {}))
    return Replay(func, flat, spec, {1: TrackedTensor.of_parameter("weight", weight)}, {0: x}, {0: axis}, None)


MEASURED: dict[str, tuple[Callable[[Tensor, Tensor], Tensor], int | None]] = {
    "kept in front": (lambda x, w: x @ w, 0),
    "moved behind": (lambda x, w: (x @ w).T, 1),
    "examples mixed": (lambda x, w: (x @ w).softmax(0), None),
    "random": (lambda x, w: F.dropout(x @ w, 0.5), None),
    "examples lost": (lambda x, w: (x @ w).sum(0), None),
    "no tensor": (lambda x, w: (x @ w).unbind(), None),
}


@pytest.mark.parametrize("name", MEASURED)
def test_the_axis_of_an_unknown_operator_is_measured_or_said_to_be_unknown(name: str) -> None:
    func, axis = MEASURED[name]
    x, weight = torch.randn(B, 4), torch.randn(4, 4)
    output = func(x, weight)
    assert measured_axis(called(func, x, weight), B, output if isinstance(output, Tensor) else output[0]) == axis


def test_nothing_is_measured_where_the_data_cannot_be_cut_into_examples() -> None:
    x, weight = torch.randn(B, 4), torch.randn(4, 4)
    for axis, size in ((None, B), (0, B + 1), (0, None)):
        assert measured_axis(called(torch.matmul, x, weight, axis), size, x @ weight) is None


def test_a_call_runs_again_on_other_values_in_the_places_of_leaves_and_data() -> None:
    x, weight = torch.randn(B, 4), torch.randn(4, 4)
    assert torch.equal(called(torch.matmul, x, weight).run([2 * weight], [x[:1]]), x[:1] @ (2 * weight))


def test_random_numbers_are_drawn_again_and_the_generator_goes_on_as_if_they_were_not() -> None:
    state = RandomState.of([torch.zeros(1)])
    first, second = torch.rand(3), torch.rand(3)
    again = state.again(lambda: torch.rand(3))
    assert torch.equal(again, first)
    torch.set_rng_state(state.cpu)
    torch.rand(3)
    state.again(lambda: torch.rand(7))
    assert torch.equal(torch.rand(3), second)
