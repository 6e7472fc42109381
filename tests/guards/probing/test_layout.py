"""The axis of the records where there are as many positions as records: the item tells which it is."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.errors import PrivacyUnitError
from hushgrad.guards.probing.layout import require_records_first

B = 4
X = torch.randn(B, B, 3, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(9, (B, B), generator=torch.Generator().manual_seed(2))
SYMMETRIC = IDS + IDS.T


def given(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (value,), {}


@pytest.mark.parametrize("item", [X, IDS], ids=["features", "ids"])
def test_a_part_of_the_item_that_was_turned_is_refused_and_as_it_came_is_accepted(item: Tensor) -> None:
    require_records_first((item, torch.zeros(B)), {}, given(item), B)
    with pytest.raises(PrivacyUnitError, match="with the 4 examples on its second axis") as raised:
        require_records_first((item, torch.zeros(B)), {}, given(item.transpose(0, 1)), B)
    assert "transpose inside its forward" in raised.value.cure


@pytest.mark.parametrize("item", [X, IDS], ids=["features", "ids"])
def test_where_the_item_has_its_records_second_it_is_the_other_way_round(item: Tensor) -> None:
    require_records_first((item,), {(0,): 1}, given(item.transpose(0, 1)), B)
    with pytest.raises(PrivacyUnitError, match="on its second axis"):
        require_records_first((item,), {(0,): 1}, given(item), B)


def test_it_is_told_by_values_whatever_the_dtype_the_place_and_the_graph_are() -> None:
    turned = X.transpose(0, 1)
    for value in (turned.double(), turned.clone().requires_grad_(), turned.contiguous()):
        for inputs in (given(value), ((), {"x": value}), given([torch.zeros(2), {"deep": value}])):
            with pytest.raises(PrivacyUnitError):
                require_records_first({"x": X}, {}, inputs, B)


def test_nothing_is_said_where_nothing_can_be_told() -> None:
    turned = X.transpose(0, 1)
    require_records_first((SYMMETRIC,), {}, given(SYMMETRIC.T), B)  # the same both ways
    require_records_first((X,), {}, given(turned * 2), B)  # computed by the loop: another check's
    require_records_first((X,), {}, given(turned[..., :2]), B)
    require_records_first((X[:, :3],), {}, given(X[:, :3].transpose(0, 1)), B)  # the shapes tell
    require_records_first((torch.zeros(B),), {}, given(turned), B)
    require_records_first((X,), {}, given(torch.zeros(B)), B)


def test_one_turned_part_among_others_is_found() -> None:
    item = {"x": X, "ids": IDS}
    require_records_first(item, {}, ((X, IDS), {}), B)
    with pytest.raises(PrivacyUnitError, match=r"shape \[4, 4\]"):
        require_records_first(item, {}, ((X, IDS.T), {}), B)


def test_no_value_of_the_batch_is_printed() -> None:
    with pytest.raises(PrivacyUnitError) as raised:
        require_records_first((IDS * 1000 + 777,), {}, given((IDS * 1000 + 777).T), B)
    assert "777" not in str(raised.value)
