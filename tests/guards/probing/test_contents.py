"""How much a row holds before its padding."""

from __future__ import annotations

import torch
from padded_records import RECORDS, B, batch, padded

from hushgrad.guards.probing.contents import contents, extremes
from hushgrad.guards.probing.rows import Batch


def test_contents_end_before_what_repeats_the_last_position() -> None:
    assert contents(padded(RECORDS)).tolist() == [3, 1, 5, 2]
    assert contents(padded(RECORDS, left=True)).tolist() == [5, 5, 5, 3]  # the last record ends on 2, 2
    assert contents(torch.zeros(2, 4)).tolist() == [1, 1]  # nothing but padding is one position
    assert contents(torch.tensor([[1, 2, 2, 2]])).tolist() == [1]
    assert contents(torch.tensor([[1, 2, 3], [1, 2, 0]])).tolist() == [3, 3]  # one position repeats nothing


def test_contents_are_of_whole_positions_also_of_features_and_of_nan() -> None:
    features = torch.zeros(2, 4, 3)
    features[0, :2] = 1
    features[1, :2, 2] = 1  # one feature is enough
    assert contents(features).tolist() == [2, 2]
    features[0, 2:] = float("nan")
    assert contents(features).tolist() == [2, 2]


def test_extremes_are_the_longest_and_the_shortest_example_of_whole_numbers() -> None:
    assert extremes(batch(padded(RECORDS))) == [2, 1]
    assert extremes(batch(padded(RECORDS).float())) == []
    assert extremes(batch(torch.arange(1, 9).reshape(4, 2))) == []
    assert extremes(Batch((padded(RECORDS),), {}, B)) == []  # of a constant nothing is told
