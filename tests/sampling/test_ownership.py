"""Whose each record is: ids as numbers, and the records of users."""

from __future__ import annotations

import copy
import pickle

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushgrad.errors import InvalidArgumentError
from hushgrad.sampling.ownership import UserIds, user_ids

IDS = ["b", "a", "b", "c", "a", "b"]


def test_ids_of_any_form_are_the_same_users() -> None:
    numbers = [7, -3, 7, 2**70, -3, 7]
    forms = [user_ids(IDS), user_ids(tuple(IDS)), user_ids(np.array(IDS)), user_ids(numbers)]
    forms += [user_ids(np.array([7, -3, 7, 2**40, -3, 7])), user_ids(np.array([5, 6, 5, 4, 6, 5], np.uint8))]
    forms += [user_ids(torch.tensor([7, 1, 7, 9, 1, 7])), user_ids(user_ids(IDS))]
    assert all(form == forms[0] for form in forms)
    assert len({hash(form) for form in forms}) == 1
    assert forms[0] != user_ids(IDS[::-1][1:])
    assert all(form.sizes.tolist() == [3, 2, 1] for form in forms)
    assert (forms[0].records, forms[0].users, forms[0].most) == (6, 3, 3)


def test_ids_are_not_printed_and_can_be_copied() -> None:
    ids = user_ids(["alice", "bob"])
    assert "alice" not in repr(ids)
    assert "0" not in repr(ids)
    assert copy.deepcopy(ids) == pickle.loads(pickle.dumps(ids)) == ids


@settings(max_examples=50, deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=40), st.data())
def test_the_records_of_users_are_all_of_theirs_in_order(owners: list[int], data: st.DataObject) -> None:
    ids = user_ids(owners)
    chosen = data.draw(st.lists(st.integers(0, ids.users - 1), unique=True))
    found = ids.records_of(np.array(chosen, np.int64))
    expected = [record for user in chosen for record in np.flatnonzero(ids.codes == user)]
    assert found.tolist() == expected
    assert ids.holds_whole_users(found)
    if len(found) and ids.sizes[ids.codes[found[0]]] > 1:
        assert not ids.holds_whole_users(found[1:])


@pytest.mark.parametrize(
    ("users", "match"),
    [
        (None, "a sequence with one id"),
        ("abc", "a sequence with one id"),
        ({1, 2}, "a sequence with one id"),
        ([], "is empty"),
        ([1, None], "have no id"),
        ([1.0, float("nan")], "have no id"),
        ([1.0, 2.0], "whole numbers or texts"),
        ([True, False], "whole numbers or texts"),
        ([1, "1"], "of one type, got int, str"),
        (np.ones((2, 2)), "whole numbers or texts"),
    ],
    ids=str,
)
def test_what_are_no_ids_is_refused(users: object, match: str) -> None:
    with pytest.raises(InvalidArgumentError, match=match) as caught:
        user_ids(users)
    assert caught.value.where == "users"
    assert caught.value.cure


def test_the_type_of_ids_is_exported_for_schemes_of_ones_own() -> None:
    assert isinstance(user_ids(IDS), UserIds)
