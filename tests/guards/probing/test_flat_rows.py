"""Rows end to end in a loop's program: altered by their owners, and left out with the last example."""

from __future__ import annotations

import torch

from hushgrad.capture.axes.layout import layout_of
from hushgrad.guards.probing.flat_rows import FlatRows

X, OWNERS = torch.arange(10.0).reshape(5, 2), torch.tensor([0, 0, 1, 1, 2])
STARTS, EDGES = torch.tensor([0, 2, 4]), torch.tensor([[0, 2, 4], [1, 3, 4]])
PARTS = [((place,), part) for place, part in enumerate((X, OWNERS, EDGES))]


def flat() -> FlatRows:
    found, layout = FlatRows(), layout_of(PARTS, 3)
    for slot, (path, tensor) in enumerate(PARTS):
        found.add(slot, layout, path, tensor)
    return found


def test_the_rows_of_chosen_examples_change_and_all_others_stay() -> None:
    for beyond in (None, 100.0):
        changed = flat().altered(0, X, [1], beyond, 10.0)
        assert torch.equal(changed[[0, 1, 4]], X[[0, 1, 4]])
        assert bool((changed[2:4] != X[2:4]).all())


def test_what_says_where_records_begin_stays() -> None:
    for slot, part in ((1, OWNERS), (2, EDGES)):
        assert flat().altered(slot, part, [1], 100.0, 10.0) is part


def test_the_last_example_is_left_out_of_all_parts() -> None:
    assert torch.equal(flat().first(0, X, 2), X[:4])
    assert flat().first(1, OWNERS, 2).tolist() == [0, 0, 1, 1]
    starts = FlatRows()
    starts.add(0, layout_of([((0,), STARTS), ((1,), X)], 3), (0,), STARTS)
    assert starts.first(0, STARTS, 2).tolist() == [0, 2]


def test_a_tensor_computed_row_by_row_has_the_same_owners() -> None:
    owners = flat().of_rows(X.sum(1))
    assert owners is not None
    assert owners.tolist() == OWNERS.tolist()
    assert flat().of_rows(torch.zeros(7)) is None
