"""A dataset that reads several records at once must give each one what it gives alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, Dataset, Subset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.joint_reads import UNTOLD

COUNT = 24
X = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1))

Records = list[Any]


class Joint(Dataset[Any]):
    """Reads records together, and makes something of all of them."""

    def __init__(self, make: Callable[[Sequence[int]], Records]) -> None:
        self.make = make

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.make([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> Records:
        return self.make(indices)


def centred(indices: Sequence[int]) -> Records:
    return [{"x": row} for row in X[list(indices)] - X[list(indices)].mean(0)]


def plain(indices: Sequence[int]) -> Records:
    return [{"x": row} for row in X[list(indices)]]


def numbered(indices: Sequence[int]) -> Records:
    return [{"x": X[index], "place": {place}} for place, index in enumerate(sorted(indices))]


def shuffled(indices: Sequence[int]) -> Records:
    return [{"x": row} for row in X[list(indices)][torch.randperm(len(indices))]]


def augmented(indices: Sequence[int]) -> Records:
    return [{"x": X[index] + 0.1 * torch.randn(4)} for index in indices]


def augmented_together(indices: Sequence[int]) -> Records:
    noise = np.random.normal(size=(4, len(indices))).T.astype(np.float32)
    return [{"x": X[index] + torch.from_numpy(row)} for index, row in zip(indices, noise, strict=True)]


def padded(indices: Sequence[int]) -> Records:
    longest = max(index % 4 + 1 for index in indices)
    rows = [[1.0] * (index % 4 + 1) + [0.0] * (longest - index % 4 - 1) for index in indices]
    return [{"x": row, "ids": row[:4]} for row in rows]


def train(dataset: Dataset[Any], collate: Any = None) -> PrivacyEngine:
    model, engine = nn.Linear(4, 2), PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(dataset, batch_size=8, collate_fn=collate),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(lambda out: out.square().sum(1))
    for batch in loader:
        criterion(model(batch["x"])).backward()
        optimizer.step()
    return engine


def names(engine: PrivacyEngine) -> set[str]:
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - {"no ledger path"}


@pytest.mark.parametrize("make", [centred, numbered])
@pytest.mark.parametrize("wrap", [lambda data: data, lambda data: Subset(data, range(COUNT))])
def test_records_that_change_with_those_that_are_read_with_them_are_refused(make: Any, wrap: Any) -> None:
    def collate(records: Records) -> Any:
        return {"x": torch.stack([record["x"] for record in records])}

    with pytest.raises(CrossSampleLeakError, match="when others are read with it"):
        train(wrap(Joint(make)), collate)


@pytest.mark.parametrize("make", [plain, augmented])
def test_records_that_are_read_together_and_do_not_are_trained_on_with_nothing_on_trust(make: Any) -> None:
    assert not names(train(Joint(make)))


def test_records_that_are_padded_to_the_longest_read_with_them_may_be() -> None:
    def collate(records: Records) -> Any:
        rows = [torch.tensor(record["x"]) for record in records]
        return {"x": torch.stack([nn.functional.pad(row, (0, 4 - len(row))) for row in rows])}

    assert not names(train(Joint(padded), collate))


@pytest.mark.parametrize("make", [augmented_together, shuffled])
def test_records_with_numbers_drawn_for_all_that_are_read_together_are_not_told(make: Any) -> None:
    engine = train(Joint(make))
    assert names(engine) == {"not examined"}
    assert UNTOLD in engine.session.probe_report.notes
