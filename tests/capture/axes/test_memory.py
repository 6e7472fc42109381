"""Windows on memory, and buffers that are written through views: the batch is found where it is, or lost."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from tracking import B, Transform, assert_axis_is_true, tracked_axis

from hushgrad.errors import PrivacyUnitError


def written(out: Tensor, view: Callable[[Tensor], Tensor], value: Tensor) -> Tensor:
    view(out).copy_(value)
    return out


def in_two_parts(x: Tensor) -> Tensor:
    first = written(torch.zeros(B, B, B), lambda out: out[..., :1], x[..., 1:2])
    return written(first, lambda out: out[..., 1:], x[..., 1:])


# On x of shape [B, B, B], the most confusing there is: each with the axis on which the batch must be found.
KEPT: dict[str, tuple[Transform, int]] = {
    "windows": (lambda x: x.as_strided((B, 2, 2, B), (B * B, B, B, 1)), 0),
    "another order": (lambda x: x.as_strided((B, B, B), (1, B, B * B)), 2),
    "of time first": (lambda x: x.transpose(0, 1).as_strided((B, B, B), (1, B * B, B)), 1),
    "from the second place": (lambda x: x.as_strided((B, B - 1), (B * B, 1), 1), 0),
    "heads folded into the batch": (
        lambda x: x.view(B * B, 1, B).as_strided((B * B, 2, 2), (B, 1, 1)).reshape(B, B, 4),
        0,
    ),
    "written into a view": (lambda x: written(torch.zeros(B, 2, B), lambda out: out[:, 0], x[:, 1]), 0),
    "written into two views": (in_two_parts, 0),
    "written into a row": (lambda x: written(torch.zeros(2, B, B), lambda out: out[1], x[:, 0]), 1),
}

LOST: dict[str, Transform] = {
    "another part of each": lambda x: x.as_strided((B, B, B - 1), (B * B - 1, B, 1)),
    "memory outside": lambda x: x[:, :1].as_strided((B, B, B), (B * B, B, 1)),
    "overlapping data": lambda x: x[0].expand(B, B, B).as_strided((B, B, B), (0, B, 1)),
    "into the next example": lambda x: x[:-1].as_strided((B - 1, B + 1, B), (B * B, B, 1)),
    "a diagonal": lambda x: written(torch.zeros(B, B), torch.diagonal, x[:, 0, 0]),
    "a view that hides the batch": lambda x: written(torch.zeros(B, B), lambda out: out.view(-1)[:B], x[:, 0, 0]).sum(
        1
    ),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_batch_is_found_where_it_is(name: str) -> None:
    transform, expected = KEPT[name]
    assert assert_axis_is_true(transform, torch.randn(B, B, B)) == expected


@pytest.mark.parametrize("name", LOST)
def test_the_batch_is_lost_where_examples_meet(name: str) -> None:
    assert tracked_axis(LOST[name], torch.randn(B, B, B))[1] is None


def test_views_that_would_put_the_batch_on_two_axes_of_a_buffer_are_refused() -> None:
    def both(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        turned = buffer.t()
        buffer[:, :1].copy_(x[:, :1])
        turned[:, 1:].copy_(x[:, 1:])
        return buffer

    with pytest.raises(PrivacyUnitError, match="in place"):
        tracked_axis(both, torch.randn(B, B))


def test_a_view_without_places_changes_nothing() -> None:
    def nothing(x: Tensor) -> Tensor:
        buffer = torch.zeros(B, B)
        buffer[:, :B].copy_(x)
        buffer.t()[:0].copy_(x[:0])
        return buffer

    assert tracked_axis(nothing, torch.randn(B, B))[1] == 0
