"""The form in which a model gets the records: the item tells it, where shapes fit several."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Path, Role
from hushgrad.errors import PrivacyUnitError
from hushgrad.guards.probing.layout import layout_in_item, require_known_layout, roles_of_inputs

B = 4
X = torch.randn(B, B, 3, generator=torch.Generator().manual_seed(1))
IDS = torch.randint(9, (B, B), generator=torch.Generator().manual_seed(2))
SYMMETRIC = IDS + IDS.T
TURNED = X.transpose(0, 1)


def given(value: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return (value,), {}


def roles(item: Any, axes: dict[Path, int] | None = None) -> dict[Path, Role]:
    return layout_in_item(item, B, axes or {}, frozenset(), {}).roles


@pytest.mark.parametrize("item", [X, IDS], ids=["features", "ids"])
def test_a_part_of_the_item_that_was_turned_has_its_records_second(item: Tensor) -> None:
    here = (item, torch.zeros(B))
    assert roles_of_inputs(here, roles(here), given(item)) == {(0, 0): Role.FIRST}
    assert roles_of_inputs(here, roles(here), given(item.transpose(0, 1))) == {(0, 0): Role.SECOND}
    second = roles(here, {(0,): 1})
    assert roles_of_inputs(here, second, given(item)) == {(0, 0): Role.SECOND}
    assert roles_of_inputs(here, second, given(item.transpose(0, 1))) == {(0, 0): Role.FIRST}


def test_it_is_told_by_values_whatever_the_dtype_the_place_and_the_graph_are() -> None:
    for value in (TURNED.double(), TURNED.clone().requires_grad_(), TURNED.contiguous()):
        for inputs in (given(value), ((), {"x": value}), given([torch.zeros(2), {"deep": value}])):
            assert Role.SECOND in roles_of_inputs({"x": X}, roles({"x": X}), inputs).values()


def test_a_sequence_that_the_loop_shifted_is_the_items() -> None:
    ids = torch.randint(9, (B + 1, B), generator=torch.Generator().manual_seed(3))
    assert roles(ids) == {(): Role.SECOND}
    for shifted in (ids[:-1], ids[1:]):
        assert roles_of_inputs(ids, roles(ids), given(shifted)) == {(0, 0): Role.SECOND}


def test_nothing_is_said_where_nothing_can_be_told() -> None:
    assert not roles_of_inputs((SYMMETRIC,), roles((SYMMETRIC,)), given(SYMMETRIC.T))  # the same both ways
    assert not roles_of_inputs((X,), roles((X,)), given(TURNED * 2))  # computed by the loop: another check's


def test_a_list_as_long_as_one_of_the_item_holds_entries() -> None:
    item = ([torch.zeros(B, 2)] * B, torch.zeros(B))
    own = {**layout_in_item(item, B, {}, {(0,)}, {}).roles, (0,): Role.ENTRIES}
    assert roles_of_inputs(item, own, given(item[0]))[0, 0] is Role.ENTRIES


def test_inputs_that_were_taken_for_something_else_are_refused() -> None:
    for taken, value in ((Role.FIRST, TURNED), (Role.SECOND, X)):
        with pytest.raises(PrivacyUnitError, match="which is as long, was taken for them") as raised:
            require_known_layout((X,), roles((X,)), given(value), {(0, 0): taken})
        assert "transpose inside its forward" in raised.value.cure
    require_known_layout((X,), roles((X,)), given(TURNED), {(0, 0): Role.SECOND})


def test_owners_that_are_no_part_of_the_item_are_refused() -> None:
    item = (torch.randn(6, 2), torch.tensor([0, 0, 1, 2, 2, 3]))
    taken = {(0, 0): Role.FLAT, (0, 1): Role.OWNERS}
    require_known_layout(item, roles(item), (item, {}), taken)
    other = (item[0], torch.tensor([0, 1, 1, 2, 2, 3]))
    with pytest.raises(PrivacyUnitError, match="no part of the loader's item") as raised:
        require_known_layout(item, roles(item), (other, {}), taken)
    assert "collate_fn" in raised.value.cure
