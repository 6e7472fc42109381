"""A copy of a dataset has its own small values, and shares what holds a row for each record."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from hushgrad.guards.probing.dataset_copies import (
    DatasetCopy,
    all_of_one_row,
    enlarged,
    is_of_somebody,
    private,
    with_exchanged,
)

COUNT = 5


class Own(Dataset[Any]):
    def __init__(self) -> None:
        self.rows = (torch.arange(COUNT).float(), list(range(COUNT)))
        self.kept, self.generator = {"max": torch.zeros(())}, torch.Generator()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        self.kept["max"] += self.rows[0][index]
        return self.rows[0][index], torch.rand((), generator=self.generator)


def test_reading_the_copy_changes_nothing_of_the_dataset() -> None:
    data = Own()
    before = data.generator.get_state()
    copied = DatasetCopy(Subset(data, [3, 1]))
    assert copied.dataset[0][0] == 3
    assert data.kept["max"] == 0
    assert torch.equal(data.generator.get_state(), before)
    assert [id(store) for store in copied.stores] == [id(store) for store in data.rows]


def test_stores_are_those_of_datasets_of_somebody_alone() -> None:
    data = TensorDataset(torch.zeros(COUNT))
    assert DatasetCopy(ConcatDataset([data, data])).stores == []
    assert not is_of_somebody(Subset(data, [0]))
    assert is_of_somebody(Subset(Own(), [0]))


@pytest.mark.parametrize("convert", [torch.tensor, np.array, list, tuple])
def test_stores_are_altered_and_stay_what_they_were(convert: Any) -> None:
    store = convert([1.0, 2.0, 3.0])
    assert list(all_of_one_row(store, 1)) == [2, 2, 2]
    assert list(enlarged(store, 1, -2.0)) == [-4, -4, -4]
    assert list(with_exchanged(store, [0])) == [3, 2, 3]
    assert list(with_exchanged(store, [1])) == [1, 3, 3]
    assert list(private(store)) == list(store) == [1, 2, 3]
