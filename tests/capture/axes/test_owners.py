"""Whose is which row."""

from __future__ import annotations

import torch

from hushgrad.capture.axes.owners import SegmentIds, Whole, dim_of, location_of, owners_along, packed_owners

X = torch.arange(12.0).reshape(6, 2)


def test_rows_in_the_examples_own_order_are_an_ordinary_axis() -> None:
    assert location_of(0, torch.tensor([0, 0, 1, 1, 2, 2]), 3) == 0
    assert isinstance(location_of(0, torch.tensor([0, 1, 1, 1, 2, 2]), 3), SegmentIds)


def test_the_owners_along_a_dimension_are_told_of_axes_and_of_rows_and_of_no_other_dimension() -> None:
    rows = torch.tensor([0, 1, 1, 1, 2, 2])
    for location, owners in ((0, [0, 0, 1, 1, 2, 2]), (SegmentIds(0, rows), rows.tolist())):
        found = owners_along(X, location, 0, 3)
        assert found is not None
        assert found.tolist() == owners
        assert owners_along(X, location, 1, 3) is None
        assert dim_of(location) == 0
    assert owners_along(X, None, 0, 3) is owners_along(X, Whole(1), 0, 3) is None
    assert owners_along(X, 0, 0, 4) is None  # six rows of four examples


def test_the_rows_of_each_example_are_gathered_with_zeros_beyond() -> None:
    blocks = SegmentIds(0, torch.tensor([0, 1, 1, 1, 2, 2])).blocks(X, 3)
    assert blocks.shape == (3, 3, 2)
    assert blocks[0].tolist() == [[0, 1], [0, 0], [0, 0]]
    assert blocks[1].tolist() == X[1:4].tolist()
    assert Whole(1).blocks(X, 3).flatten(1).abs().sum(1).tolist() == [0, X.sum(), 0]


def test_a_packed_sequence_has_at_each_time_those_that_still_run() -> None:
    assert packed_owners(torch.tensor([2, 2, 1]), torch.tensor([1, 0])).tolist() == [1, 0, 1, 0, 1]
