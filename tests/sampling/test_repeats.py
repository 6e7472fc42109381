"""A dataset that has a record at several indices is refused at set-up, as far as torch's parts say so."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import ConcatDataset, DataLoader, Dataset, StackDataset, Subset, TensorDataset, random_split

from hushgrad import PrivacyEngine
from hushgrad.errors import DuplicateRecordError
from hushgrad.sampling.ownership import user_ids
from hushgrad.sampling.repeats import require_each_once

COUNT = 24
X, Y = torch.randn(COUNT, 3, generator=torch.Generator().manual_seed(0)), torch.zeros(COUNT).long()


class Altered(Dataset[Any]):
    """Hands out each record of another dataset, altered."""

    def __init__(self, inner: Dataset[Any]) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> Any:
        x, y = self.inner[index]
        return -x, y


class Half(Altered):
    """Hands out every other record of another dataset."""

    def __init__(self, inner: Dataset[Any], first: int) -> None:
        super().__init__(inner)
        self.first = first

    def __len__(self) -> int:
        return COUNT // 2

    def __getitem__(self, index: int) -> Any:
        return self.inner[2 * index + self.first]


def base() -> TensorDataset:
    return TensorDataset(X, Y)


def twice(part: Callable[[Dataset[Any]], Dataset[Any]]) -> ConcatDataset[Any]:
    data = base()
    return ConcatDataset([data, part(data)])


REPEATED: dict[str, Callable[[], Dataset[Any]]] = {
    "an index that comes again": lambda: Subset(base(), [*range(8), 3, 3]),
    "an index from the end": lambda: Subset(base(), [*range(COUNT), -1]),
    "indices in an array": lambda: Subset(base(), np.array([0, 1, 1])),  # type: ignore[arg-type]
    "indices in a tensor": lambda: Subset(base(), torch.tensor([0, 1, 1])),  # type: ignore[arg-type]
    "one dataset twice": lambda: ConcatDataset([base()] * 2),
    "two datasets of the same tensors": lambda: ConcatDataset([base(), base()]),
    "an altered copy": lambda: twice(Altered),
    "subsets that overlap": lambda: twice(lambda data: Subset(data, [COUNT - 1])),
    "a subset of a subset": lambda: Subset(Subset(base(), [5, 6, 5]), [0, 2]),
    "a subset of joined ones": lambda: Subset(ConcatDataset([base(), base()]), [2, 2 + COUNT]),
    "within a wrapper": lambda: Altered(Altered(Subset(base(), [1, 1]))),
}

EACH_ONCE: dict[str, Callable[[], Dataset[Any]]] = {
    "no parts": base,
    "a subset": lambda: Subset(base(), [5, 3, -1]),
    "a range": lambda: Subset(base(), range(0, COUNT, 2)),  # type: ignore[arg-type]
    "a random split joined again": lambda: ConcatDataset(random_split(base(), [10, 14])),
    "a subset that leaves repeated ones out": lambda: Subset(Subset(base(), [5, 6, 5]), [0, 1]),
    "parts of one dataset by a class of the caller's": lambda: ConcatDataset(
        [Half(found := base(), 0), Half(found, 1)]
    ),
    "tensors that are parts of one": lambda: ConcatDataset(
        [TensorDataset(X[:8], Y[:8]), TensorDataset(X[8:16], Y[8:16])]
    ),
    "equal values": lambda: ConcatDataset([base(), TensorDataset(X.clone(), Y)]),
    "two datasets side by side": lambda: StackDataset(base(), base()),
    "keys that are no numbers": lambda: Subset({"a": 1, "b": 2}, ["a", "b"]),  # type: ignore[arg-type, list-item]
    "none": lambda: Subset(base(), []),
}


@pytest.mark.parametrize("name", REPEATED)
def test_a_record_at_several_indices_is_refused(name: str) -> None:
    with pytest.raises(DuplicateRecordError, match=r"DP202 the dataset: .*Take each record once"):
        require_each_once(REPEATED[name]())


@pytest.mark.parametrize("name", EACH_ONCE)
def test_a_dataset_that_has_each_record_once_is_not_refused(name: str) -> None:
    require_each_once(EACH_ONCE[name]())


def test_places_of_one_record_may_be_those_of_one_user_and_of_no_two() -> None:
    data = Subset(base(), [0, 1, 1, 2])
    require_each_once(data, user_ids(["a", "b", "b", "c"]))
    with pytest.raises(DuplicateRecordError, match="records of different users"):
        require_each_once(data, user_ids(["a", "b", "c", "c"]))


@pytest.mark.parametrize("poisson", [True, False])
def test_it_is_refused_at_set_up(poisson: bool) -> None:
    model = nn.Linear(3, 2)
    with pytest.raises(DuplicateRecordError):
        PrivacyEngine().make_private(
            module=model,
            optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
            data_loader=DataLoader(Subset(base(), [*range(8), 3]), batch_size=3),
            noise_multiplier=1.0,
            max_grad_norm=1.0,
            poisson_sampling=poisson,
        )
