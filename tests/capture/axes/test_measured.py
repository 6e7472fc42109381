"""An axis that is found by measurement is proven on drawn numbers, whatever the values of the call are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.capture.axes import measured as module
from hushgrad.capture.axes.measured import measured
from hushgrad.capture.axes.rules import OperatorCall
from hushgrad.capture.axes.table import AXIS_RULES

B = 4


def axis(func: Callable[..., Any], *args: Any, of: Tensor, at: int = 0, batch_size: int = B, **kwargs: Any) -> Any:
    call = OperatorCall(func, args, kwargs, [of], [at], batch_size)
    return measured(call, func(*args, **kwargs), 0)


def test_values_that_would_prove_nothing_are_not_looked_at() -> None:
    """Of zeros every axis looks right, and a constant of zeros hides that the batch is summed over."""
    zeros = torch.zeros(B, B)
    assert axis(torch.tensordot, zeros, torch.zeros(B, B), 1, of=zeros) == 0
    assert axis(torch.tensordot, zeros.T, torch.zeros(B, B), 1, of=zeros.T) is None
    x = torch.zeros(B, B)
    assert axis(torch.tensordot, x, torch.zeros(B, B), 1, of=x, at=1) is None


def test_positions_folded_into_the_batch_go_with_their_example() -> None:
    x, w = torch.randn(3 * B, 2), torch.randn(2, 5)
    assert axis(torch.tensordot, x, w, 1, of=x) == 0
    assert axis(torch.tensordot, w, x, dims=([0], [1]), of=x) == 1


def test_the_same_tensor_in_two_places_stays_one() -> None:
    x = torch.randn(B, B, B)
    assert axis(torch.linalg.vecdot, x, x, of=x) == 0
    assert axis(torch.linalg.vecdot, x, x, dim=0, of=x) is None
    y = torch.randn(B, 2)
    assert axis(torch.inner, y, y, of=y) is None


def doubled_gradient() -> Callable[[Tensor], Tensor]:
    class Shifted(torch.autograd.Function):
        """Forward row by row; backward gives each row the gradient of another one."""

        @staticmethod
        def forward(ctx: Any, x: Tensor) -> Tensor:
            return x * 2

        @staticmethod
        def backward(ctx: Any, gradient: Tensor) -> Tensor:
            return gradient.roll(1, 0) * 2

    return Shifted.apply  # type: ignore[no-any-return]


def test_a_backward_that_mixes_rows_is_found_though_the_forward_does_not() -> None:
    """Guarantee: an axis is returned only if all rows of drawn outputs, and of gradients, are those of one alone."""
    x = torch.randn(B, 3)
    assert axis(doubled_gradient(), x, of=x) is None
    assert axis(torch.tanh, x, of=x) == 0


@pytest.mark.parametrize(
    "mix",
    [
        lambda x: x - x.mean(0),
        lambda x: x.flip(0),
        lambda x: x * torch.arange(len(x))[:, None],
        lambda x: x / len(x),
        lambda x: x.cumsum(0),
        lambda x: x + 1e-6 * x.sum(0),
    ],
)
def test_what_mixes_moves_or_counts_rows_has_no_axis(mix: Callable[[Tensor], Tensor]) -> None:
    x = torch.randn(B, 3)
    assert axis(mix, x, of=x) is None


def test_a_call_on_integers_is_not_measured() -> None:
    x = torch.randn(B, 3)
    assert axis(torch.gather, x, 1, torch.zeros(B, 1, dtype=torch.long), of=x) is None


def test_a_measurement_is_remembered_by_shapes_and_constant_arguments() -> None:
    calls = []

    def counted(x: Tensor, power: int) -> Tensor:
        calls.append(x)
        return x**power

    x = torch.randn(B, 3)
    assert axis(counted, x, 2, of=x) == 0
    count = len(calls)
    assert axis(counted, x * 2, 2, of=(y := x * 2)) is None or y is not x  # another tensor: not the data
    calls.clear()
    y = torch.randn(B, 3)
    assert axis(counted, y, 2, of=y) == 0
    assert len(calls) == 1  # the call itself
    axis(counted, y, 3, of=y)
    assert len(calls) == 2 + count - 1


def test_a_measurement_draws_nothing_from_torchs_generator() -> None:
    state = torch.get_rng_state()
    x = torch.ones(B, 3)
    module._known.clear()
    assert axis(torch.tensordot, x, torch.ones(3, 2), 1, of=x) == 0
    assert torch.equal(state, torch.get_rng_state())


def test_a_call_that_is_too_large_is_not_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "LARGEST", 10)
    monkeypatch.setattr(module, "_known", {})
    x = torch.ones(B, 3)
    assert axis(torch.tensordot, x, torch.ones(3, 2), 1, of=x) is None


@pytest.mark.parametrize(
    "func", [torch.sort, torch.renorm, torch.topk, torch.unique, torch.masked_select, torch.cov, torch.pdist]
)
def test_an_operator_whose_rows_meet_by_their_values_is_never_measured(func: Callable[..., Any]) -> None:
    assert AXIS_RULES.get(func) is not measured
