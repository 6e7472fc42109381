"""The batch axis that is tracked, against what really changes in a tensor when one example of the input does."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from tracking import PERMUTATION, B, Transform, assert_axis_is_true, assigned, tracked_axis

from hushgrad.capture.axes.batch_axes import BatchAxes
from hushgrad.capture.mode import CaptureMode
from hushgrad.capture.operators.operator import ForwardContext, GraphAnchor
from hushgrad.capture.uses import UsePool
from hushgrad.errors import PrivacyUnitError

STEPS: list[Transform] = [
    lambda x: x.transpose(0, -1),
    lambda x: x.movedim(0, 1) if x.ndim > 1 else x,
    lambda x: x.unsqueeze(0),
    lambda x: x.unsqueeze(-1),
    lambda x: x.squeeze(),
    lambda x: x[0] if x.ndim > 1 else x,
    lambda x: x[..., 0] if x.ndim > 1 else x,
    lambda x: x[:, :1] if x.ndim > 1 else x,
    lambda x: x.flatten(0, 1) if x.ndim > 1 else x,
    lambda x: x.flatten(-2) if x.ndim > 1 else x,
    lambda x: x.reshape(2, -1),
    lambda x: x.reshape(-1, 2),
    lambda x: x.reshape(2, 2, -1),
    lambda x: x.sum(0),
    lambda x: x.sum(-1),
    lambda x: x.mean(0, keepdim=True),
    lambda x: x.cumsum(-1),
    lambda x: x.softmax(0),
    lambda x: x.flip(-1),
    lambda x: torch.cat([x, x * 2], -1),
    lambda x: torch.stack([x, -x], 0),
    lambda x: torch.stack([x, -x], -1),
    lambda x: x @ x.mT if x.ndim > 1 else x,
    lambda x: x @ torch.ones(x.shape[-1], 2),
    lambda x: x + x.mT if x.ndim > 1 and x.shape[-1] == x.shape[-2] else x,
    lambda x: x.expand(2, *x.shape),
    lambda x: x.repeat_interleave(2, dim=-1),
    lambda x: x.split(1)[0],
    lambda x: x.split(2, -1)[0],
    lambda x: x.diagonal(dim1=0, dim2=-1) if x.ndim > 1 else x,
    lambda x: x.unfold(-1, 1, 1),
    lambda x: x.T if x.ndim == 2 else x,
    lambda x: x - x.amax(-1, keepdim=True),
    lambda x: x.contiguous().view(-1),
    lambda x: x[torch.arange(2), torch.tensor([1, 0])] if x.ndim > 1 and min(x.shape[:2]) == 2 else x,
]


@settings(max_examples=300, deadline=None)
@given(
    batch=st.sampled_from([2, 2, 3, 4]),
    rest=st.lists(st.sampled_from([1, 2, 2, 3, 4]), min_size=1, max_size=2),
    steps=st.lists(st.sampled_from(range(len(STEPS))), min_size=1, max_size=6),
)
def test_no_chain_of_operators_makes_the_tracked_axis_untrue(batch: int, rest: list[int], steps: list[int]) -> None:
    x = torch.randn(batch, *rest, dtype=torch.float64)

    def chain(value: Tensor) -> Tensor:
        for step in steps:
            if value.ndim == 0 or value.ndim > 6 or value.numel() > 4096:
                break
            try:
                value = STEPS[step](value)
            except (RuntimeError, IndexError):
                continue  # the step does not fit the shape
        return value

    assert_axis_is_true(chain, x)


def test_a_write_that_mixes_examples_in_place_is_refused() -> None:
    x = torch.randn(B, B)
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: x.clone().add_(x.T), x)
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: assigned(x.clone(), PERMUTATION, x.clone()), x)
    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(lambda x: x.clone().unsqueeze(0).squeeze_(0), x)


@pytest.mark.parametrize(
    "move",
    [
        lambda x: x.clone().transpose_(0, 1),
        lambda x: x.clone().transpose_(-1, 0).swapaxes_(0, 1).tanh(),
        lambda x: x.clone().swapdims_(1, 2),
        lambda x: x.clone().unsqueeze_(0),
        lambda x: x.clone().unsqueeze_(-1).transpose_(-1, 0),
        lambda x: x.clone().unsqueeze_(dim=1).swapaxes_(axis0=0, axis1=2),
        lambda x: x.clone().transpose_(dim0=0, dim1=2),
    ],
)
@pytest.mark.parametrize("shape", [(B, B, B), (B, 3, 2)])
def test_the_batch_is_followed_where_a_tensor_is_turned_in_place(
    move: Callable[[Tensor], Tensor], shape: tuple[int, ...]
) -> None:
    x = torch.randn(shape, dtype=torch.float64)
    assert tracked_axis(move, x)[1] is not None
    assert_axis_is_true(move, x)


def test_a_buffer_written_through_a_view_is_not_taken_for_a_constant() -> None:
    def row(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        buffer[0].copy_(x[:, 0])
        return buffer

    def diagonal(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        buffer.diagonal().copy_(x[:, 0])
        return buffer

    assert assert_axis_is_true(row, torch.randn(B, B, dtype=torch.float64)) == 1
    assert tracked_axis(diagonal, torch.randn(B, B))[1] is None


def test_inputs_with_another_number_of_rows_have_no_axis_and_one_row_is_a_constant() -> None:
    axes = BatchAxes()
    x, mask, positions = torch.randn(4, 2), torch.ones(7, 7), torch.arange(7)[None]
    assert axes.seed(((x, {"mask": mask}), positions), 4) == 4
    assert axes.get(x) == 0
    assert axes.descends(mask)
    assert axes.get(mask) is None
    assert not axes.descends(positions)


def test_a_count_that_is_only_looked_at_is_not_blamed_for_what_another_operator_lost() -> None:
    axes = lost_in(lambda x: bool(x.sum() > 0) or x.flip(0))
    assert axes.lost_by is not None
    assert axes.lost_by.startswith("flip")


def test_a_count_that_meets_the_data_is_blamed() -> None:
    axes = lost_in(lambda x: x / x.sum())
    assert axes.lost_by is not None
    assert axes.lost_by.startswith("sum")


def lost_in(transform: Callable[[Tensor], object]) -> BatchAxes:
    """Return the axes after a forward on numbers below 0."""
    axes, x = BatchAxes(), -torch.rand(B, 2)
    axes.seed((x,), B)
    with CaptureMode(ForwardContext(UsePool(), GraphAnchor(), axes, {}, B, []), lambda: True):
        transform(x)
    return axes
