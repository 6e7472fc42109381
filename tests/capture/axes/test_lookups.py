"""Tables read at places of the batch: the batch lies where the places lie, whatever the index looks like."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from tracking import B, Transform, assert_axis_is_true, tracked_axis

from hushgrad.capture.axes.lookups import reading_of

TABLE = torch.randn(B, B, B, B, dtype=torch.float64)
ROWS = torch.arange(B)
UNSORTED = torch.randn(B, B, B, generator=torch.Generator().manual_seed(1))
"""Of which the places, once they are sorted, are not those of all rows: these would be the batch again."""


def ids(x: Tensor) -> Tensor:
    """Places `[B, B]` below B that each example decides itself."""
    return (x[..., 0] * 7).long().abs() % B


KEPT: dict[str, tuple[Transform, int]] = {
    "t[i]": (lambda x: TABLE[ids(x)], 0),
    "t[:, i]": (lambda x: TABLE[:, ids(x)], 1),
    "t[..., i]": (lambda x: TABLE[..., ids(x)], 3),
    "t[None, i]": (lambda x: TABLE[None, ids(x)], 1),
    "t[1:, i]": (lambda x: TABLE[1:, ids(x)], 1),
    "t[0, i]": (lambda x: TABLE[0, ids(x)], 0),
    "t[0, :, i]": (lambda x: TABLE[0, :, ids(x)], 1),
    "t[i, 1, :, 0]": (lambda x: TABLE[ids(x), 1, :, 0], 0),
    "t[i, j]": (lambda x: TABLE[ids(x), ids(x + 1)], 0),
    "t[i, :, j]": (lambda x: TABLE[ids(x), :, ids(x + 1)], 0),
    "t[:, :, i, :]": (lambda x: TABLE[:, :, ids(x), :], 2),
    "t[i, rows]": (lambda x: TABLE[ids(x), ROWS], 0),
    "t[i[:, None], rows]": (lambda x: TABLE[ids(x)[:, :1], ROWS], 0),
    "t[time first]": (lambda x: TABLE[ids(x).T], 1),
    "t[folded]": (lambda x: TABLE[ids(x).flatten()], 0),
    "t[i - n]": (lambda x: TABLE[ids(x) - B], 0),
    "index_select": (lambda x: TABLE.index_select(0, ids(x)[:, 0]), 0),
    "index_select 1": (lambda x: torch.index_select(TABLE, 1, ids(x)[:, 0]), 1),
    "gather on the batch": (lambda x: TABLE[0, 0].gather(0, ids(x)), 0),
    "gather beside it": (lambda x: TABLE[0, 0].gather(1, ids(x)), 0),
    "take_along_dim": (lambda x: torch.take_along_dim(TABLE[0, 0], ids(x), 0), 0),
    "take_along_dim of data": (lambda x: torch.take_along_dim(x, x.argsort(1), 1), 0),
    "take_along_dim of data by name": (lambda x: torch.take_along_dim(x, indices=x.argsort(1), dim=1), 0),
}

LOST: dict[str, Transform] = {
    "t[i, j of other examples]": lambda x: TABLE[ids(x), ids(x).T],
    "t[i, j of one example]": lambda x: TABLE[ids(x), ids(x)[0]],
    "t[mask]": lambda x: TABLE[0, 0, 0][x[:, 0, 0] > 0],
    "t[sorted i]": lambda x: TABLE[ids(x)[:, 0].sort().values],
    "t[i of the sum]": lambda x: TABLE[ids(x.sum(0))],
    "t[largest i]": lambda x: TABLE[ids(x)[:, 0].max()],
    "t of data": lambda x: x[ids(x)[:, 0].sort().values],
    "gather of data along the batch": lambda x: x.gather(0, x.argsort(0)),
    "take_along_dim of data along the batch": lambda x: torch.take_along_dim(x, x.argsort(0), 0),
}


@pytest.mark.parametrize("name", KEPT)
def test_the_batch_is_found_where_the_places_lie(name: str) -> None:
    """Guarantee: a tensor whose axis is known holds at each place along it values from that one example alone."""
    transform, expected = KEPT[name]
    assert assert_axis_is_true(transform, torch.randn(B, B, B, dtype=torch.float64)) == expected


@pytest.mark.parametrize("name", LOST)
@pytest.mark.parametrize("x", [UNSORTED, torch.ones(B, B, B), torch.arange(27.0).view(B, B, B)])
def test_the_batch_is_lost_where_places_are_of_several_examples(name: str, x: Tensor) -> None:
    """Also where the values are all alike, or sorted already."""
    assert tracked_axis(LOST[name], x.clone())[1] is None


@pytest.mark.parametrize(
    "index",
    [
        torch.tensor([True, False, True]),
        torch.tensor([0, 1], dtype=torch.uint8),
        (slice(None), 1),
        (Ellipsis, ROWS, Ellipsis),
        [0, 1],
        True,
    ],
)
def test_what_is_no_reading_at_places_is_left_to_others(index: object) -> None:
    assert reading_of(index, 3) is None
