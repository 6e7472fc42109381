"""`masked_scatter`: exact where each example has as many places as values, lost where it has not."""

from __future__ import annotations

import pytest
import torch
from tracking import B, Transform, assert_axis_is_true, tracked_axis

EVEN = torch.tensor([[True, True, False], [False, True, True], [True, False, True]])
RAGGED = torch.tensor([[True, True, True], [True, True, False], [True, False, False]])[:, :, None].expand(B, B, B)
"""9, 6 and 3 places: as many together as 3 examples with 6 values each have."""

KEPT: dict[str, Transform] = {
    "the largest place of each": lambda x: x.masked_scatter(x == x.amax((1, 2), keepdim=True), x[:, 0, :1]),
    "into constants": lambda x: torch.zeros(B, B).masked_scatter(EVEN, x[:, 0, :2]),
    "in place": lambda x: x.clone().masked_scatter_(EVEN[:, :, None], x[:, :2]),
    "one mask for all": lambda x: x.masked_scatter(EVEN[:1, :, None], x[:, :2]),
    "values as rows": lambda x: x.masked_scatter(EVEN[:, :, None], x[:, :2].flatten(0, 1)),
    "nowhere and nothing": lambda x: x.masked_scatter(x > 1e9, x[:, :0]),
}
LOST: dict[str, Transform] = {
    "more values than places": lambda x: x.masked_scatter(x == x.amax((1, 2), keepdim=True), x),
    "unequal counts that add up": lambda x: x.masked_scatter(RAGGED, x[:, :2]),
    "time first": lambda x: x.transpose(0, 1).masked_scatter(x > -1e9, x),
    "values time first": lambda x: x.masked_scatter(x > -1e9, x.transpose(0, 1)),
    "a mask time first": lambda x: x.masked_scatter((x > -1e9).transpose(0, 1), x),
    "values in another order": lambda x: x.masked_scatter(x > -1e9, x[x[:, 0, 0].argsort()]),
}


@pytest.mark.parametrize("name", KEPT)
def test_each_examples_values_go_to_its_own_places(name: str) -> None:
    """Guarantee: an axis is returned only if each example has exactly as many places as it has values."""
    assert assert_axis_is_true(KEPT[name], torch.randn(B, B, B)) == 0


@pytest.mark.parametrize("name", LOST)
def test_the_batch_is_lost_where_values_may_go_to_another_example(name: str) -> None:
    assert tracked_axis(LOST[name], torch.randn(B, B, B))[1] is None
