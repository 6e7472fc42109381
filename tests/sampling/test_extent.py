"""How much a record holds is told of any record, and asked before a collate function changes it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import Dataset

from hushgrad.randomness import KeyStream
from hushgrad.sampling import LoadingOptions, PoissonSampling, PrivateLoader
from hushgrad.sampling.extent import extent_of, lengths_of


@dataclass
class Pair:
    ids: list[int]
    text: str


class Failing:
    def __len__(self) -> int:
        raise ValueError


LONGER: list[tuple[Any, Any]] = [
    (torch.zeros(3), torch.zeros(5)),
    (np.zeros((2, 3)), np.zeros((2, 4))),
    ("abc", "abcde"),
    ([1, 2], [1, 2, 3]),
    ((torch.zeros(3), 1), (torch.zeros(4), 1)),
    ({"ids": [1], "label": 0}, {"ids": [1, 1], "label": 0}),
    ([torch.zeros(3)], [torch.zeros(3), torch.zeros(3)]),
    (Pair([1], "a"), Pair([1], "ab")),
    (Pair([1], "a"), Pair([1, 2], "a")),
]


@pytest.mark.parametrize(("short", "long"), LONGER)
def test_a_record_that_holds_more_has_the_larger_extent(short: Any, long: Any) -> None:
    assert extent_of(short) < extent_of(long)


@pytest.mark.parametrize("record", [1, None, 2.5, Failing(), object()])
def test_a_record_without_a_length_has_none(record: Any) -> None:
    assert extent_of(record) == 0


def test_each_length_is_told_by_its_place() -> None:
    assert dict(lengths_of({"x": torch.zeros(2, 3), "t": "ab"})) == {("x", 0): 2, ("x", 1): 3, ("t",): 2}


@pytest.mark.parametrize("workers", [0, 2])
def test_items_of_a_collate_function_tell_how_much_their_records_held_before_it_changed_them(workers: int) -> None:
    seen = []

    class Observer:
        def before_draw(self) -> None: ...

        def begin(self, batch: Any, item: Any) -> None:
            seen.append((batch.indices, batch.extents))

        def lost(self, batch: Any) -> None: ...

    loader = PrivateLoader(
        Growing(),
        PoissonSampling(0.5),
        steps_per_pass=3,
        stream=KeyStream.fixed_for_tests(0),
        options=LoadingOptions(collate_fn=emptied, num_workers=workers),
        observer=Observer(),
    )
    assert len(list(loader)) == 3
    assert all(extents == tuple(index + 1 for index in indices) for indices, extents in seen)
    assert "extents" not in repr(loader)


class Growing(Dataset[torch.Tensor]):
    def __len__(self) -> int:
        return 20

    def __getitem__(self, index: int) -> torch.Tensor:
        return torch.zeros(index + 1)


def emptied(records: list[Any]) -> torch.Tensor:
    for record in records:
        record.resize_(0)
    return torch.zeros(len(records))
