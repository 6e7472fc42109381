"""A dataset must make each record of that record alone, and what it keeps of records is told."""

from __future__ import annotations

import functools
import random
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, Subset, TensorDataset

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError, TakenOnTrustError
from hushgrad.guards.probing.dataset_reads import UNCOPIED, DatasetReads
from hushgrad.guards.probing.widths import Drawn

COUNT = 24
X, Y = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1)), torch.arange(COUNT) % 3


class Plain(Dataset[Any]):
    def __init__(self, convert: Callable[[Tensor], Any] = lambda x: x) -> None:
        self.x, self.y = convert(X.clone()), convert(Y.clone())
        self.order = list(np.random.default_rng(2).permutation(COUNT))
        self.big, self.reads, self.cache, self.last = 0.0, 0, {}, None  # type: ignore[var-annotated]
        self.mean, self.seen, self.log = np.zeros(4), False, []  # type: ignore[var-annotated]
        self.generator = torch.Generator().manual_seed(3)
        self.elapsed = np.random.default_rng()

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.y[index]


class Mixed(Plain):
    def __getitem__(self, index: int) -> Any:
        other = random.randrange(4)
        return 0.5 * self.x[index] + 0.5 * self.x[other], self.y[index]


class SometimesMixed(Plain):
    def __getitem__(self, index: int) -> Any:
        other = int(torch.randint(COUNT, (), generator=self.generator))
        share = 0.3 if torch.rand(()) < 0.5 else 0.0
        return (1 - share) * self.x[index] + share * self.x[other], self.y[index]


class Negatives(Plain):
    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.x[(index + np.random.randint(1, 5)) % COUNT]


class Centred(Plain):
    def __getitem__(self, index: int) -> Any:
        return self.x[index] - sum(self.x) / COUNT, self.y[index]


class RunningMean(Plain):
    def __getitem__(self, index: int) -> Any:
        self.mean = 0.9 * self.mean + 0.1 * np.asarray(self.x[index])
        return torch.as_tensor(self.x[index]) - torch.as_tensor(self.mean), self.y[index]


class Previous(Plain):
    def __getitem__(self, index: int) -> Any:
        before, self.last = self.last, self.x[index]
        return self.x[index] + (0 if before is None else before), self.y[index]


class KeepsMaximum(Plain):
    def __getitem__(self, index: int) -> Any:
        self.big = max(self.big, float(torch.as_tensor(self.x[index]).abs().max()))
        return super().__getitem__(index)


class KeepsFlag(Plain):
    def __getitem__(self, index: int) -> Any:
        self.seen = self.seen or bool(torch.as_tensor(self.x[index]).abs().max() > 2)
        return super().__getitem__(index)


class KeepsLog(Plain):
    def __getitem__(self, index: int) -> Any:
        self.log.append(float(torch.as_tensor(self.x[index]).abs().max()))
        return super().__getitem__(index)


class KeepsMean(Plain):
    def __getitem__(self, index: int) -> Any:
        self.mean += 0.1 * np.asarray(self.x[index])
        return super().__getitem__(index)


class Cached(Plain):
    """Caches records by their index, counts, and keeps the last one."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.rows, self.by_place = torch.zeros(COUNT, 4), [None] * COUNT

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        self.cache[index] = self.by_place[index] = self.last = record = super().__getitem__(index)
        self.rows[index] = torch.as_tensor(record[0])
        return record


class Ordered(Plain):
    def __getitem__(self, index: int) -> Any:
        return super().__getitem__(self.order[index])


class Augmented(Plain):
    def __getitem__(self, index: int) -> Any:
        noise = torch.randn(4, generator=self.generator) + random.random() + np.random.normal()
        return torch.as_tensor(self.x[index]) * torch.as_tensor(noise, dtype=torch.float32), self.y[index]


class FreshlySeeded(Plain):
    def __getitem__(self, index: int) -> Any:
        return self.x[index] + float(np.random.default_rng().normal()), self.y[index]


class Timed(Plain):
    def __getitem__(self, index: int) -> Any:
        self.big += float(self.elapsed.normal())  # what a clock gives: another number each time
        return super().__getitem__(index)


class WithTable(Plain):
    """Looks up what belongs to a class in a table."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.table = torch.eye(3)

    def __getitem__(self, index: int) -> Any:
        return self.x[index], self.table[int(self.y[index])]


class Uncopied(Plain):
    def __copy__(self) -> Any:
        raise TypeError("no copies")


class Wrapping(Dataset[Any]):
    def __init__(self, inner: Any) -> None:
        self.inner = inner

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> Any:
        return self.inner[index]


def as_array(x: Tensor) -> Any:
    return x.numpy()


def as_list(x: Tensor) -> Any:
    return list(x)


CONVERTED = [lambda x: x, as_array, as_list]
WRAPPED: list[Callable[[Any], Any]] = [
    lambda data: data,
    lambda data: Subset(data, list(range(COUNT))[::-1]),
    lambda data: Wrapping(Subset(data, range(COUNT - 2))),  # type: ignore[arg-type]
]
LEAKY = [Mixed, SometimesMixed, Negatives, Centred, RunningMean, Previous]
KEEPING = [KeepsMaximum, KeepsFlag, KeepsLog, KeepsMean]
CLEAN = [Plain, Cached, Ordered, Augmented, FreshlySeeded, WithTable]


def examined(dataset: Any) -> DatasetReads:
    reads = DatasetReads()
    reads.before_draw(dataset)
    indices = list(range(8))
    item = [dataset[index] for index in indices]
    reads.examine(Drawn(dataset, indices, item, len(item), None))
    return reads


@pytest.mark.parametrize("convert", CONVERTED)
@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", LEAKY)
def test_a_record_that_is_made_of_others_is_refused(kind: Any, wrap: Any, convert: Any) -> None:
    with pytest.raises(CrossSampleLeakError, match=r"DP301 .*__getitem__: (makes|gives) a record"):
        examined(wrap(kind(convert)))


@pytest.mark.parametrize("convert", CONVERTED)
@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", KEEPING)
def test_values_that_follow_earlier_records_are_told(kind: Any, wrap: Any, convert: Any) -> None:
    assert examined(wrap(kind(convert))).keeps


@pytest.mark.parametrize("convert", CONVERTED)
@pytest.mark.parametrize("wrap", WRAPPED)
@pytest.mark.parametrize("kind", CLEAN)
def test_caches_by_index_counters_orders_and_augmentation_are_not(kind: Any, wrap: Any, convert: Any) -> None:
    reads = examined(wrap(kind(convert)))
    assert not reads.keeps
    assert not reads.untold


def test_a_maximum_that_is_as_large_as_any_record_is_told_as_well() -> None:
    data = KeepsMaximum()
    for index in range(COUNT):
        data[index]
    assert examined(data).keeps


def test_nothing_of_the_dataset_is_changed() -> None:
    data = Cached()
    data[0]
    before = data.x.clone(), data.reads, dict(data.cache), data.generator.get_state()
    reads = DatasetReads()
    reads.before_draw(data)
    reads.examine(Drawn(data, [0, 1, 2], [], 3, None))
    assert torch.equal(data.x, before[0])
    assert (data.reads, data.cache) == before[1:3]
    assert torch.equal(data.generator.get_state(), before[3])


def test_no_altered_record_is_left_in_a_cache() -> None:
    class CachedMix(Cached):
        def __getitem__(self, index: int) -> Any:
            record = super().__getitem__(index)
            self.by_place[index] = record[0] + 0 * self.x[0]
            return record

    for kind in (Cached, CachedMix):
        data = kind()
        examined(data)
        assert all(torch.equal(data.rows[index], X[index]) for index in range(8))
        assert all(torch.equal(torch.as_tensor(_first(data.by_place[index])), X[index]) for index in range(8))


def _first(record: Any) -> Any:
    return record[0] if isinstance(record, tuple) else record


class Late(Previous):
    """Mixes a record with the one that was read before it, once so many were read."""

    def __getitem__(self, index: int) -> Any:
        self.reads += 1
        mixed = super().__getitem__(index)
        return mixed if self.reads > COUNT else (self.x[index], self.y[index])


def test_a_dataset_that_mixes_records_later_than_the_first_item_is_met_by_a_look() -> None:
    dataset, reads = Late(), DatasetReads()

    def item(*, is_look: bool) -> None:
        reads.before_draw(dataset, is_look=is_look)
        indices = list(range(8))
        read = [dataset[index] for index in indices]
        reads.examine(Drawn(dataset, indices, read, len(indices), None))

    for _ in range(3):
        item(is_look=False)
    assert dataset.reads == COUNT  # copies are read, not the dataset
    item(is_look=False)
    with pytest.raises(CrossSampleLeakError, match="after other records were read"):
        item(is_look=True)


def test_a_dataset_that_cannot_be_copied_is_not_examined_and_torchs_own_need_not_be() -> None:
    assert examined(Uncopied()).untold == [UNCOPIED]
    assert examined(Subset(TensorDataset(X, Y), range(COUNT))).untold == []  # type: ignore[arg-type]


def train(dataset: Any, *, strict: bool = False) -> set[str]:
    model, engine = nn.Linear(4, 3), PrivacyEngine(strict=strict)
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(dataset, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(functools.partial(nn.functional.cross_entropy, reduction="none"))
    for x, y in loader:
        criterion(model(x), y).backward()
        optimizer.step()
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - {"no ledger path"}


def test_a_loop_learns_of_it() -> None:
    assert train(Cached()) == set()
    assert train(KeepsMaximum()) == {"values kept by the dataset"}
    with pytest.raises(TakenOnTrustError, match="values kept by the dataset"):
        train(KeepsMaximum(), strict=True)
    with pytest.raises(CrossSampleLeakError):
        train(Mixed())
