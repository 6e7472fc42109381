"""What is registered with torch's collate function, and classes of others that it stacks, are examined."""

from __future__ import annotations

from collections import OrderedDict, namedtuple
from collections.abc import Callable, Iterator
from types import MappingProxyType
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, IterableDataset
from torch.utils.data._utils import collate as torchs

from hushgrad import PrivacyEngine
from hushgrad.errors import CrossSampleLeakError
from hushgrad.sampling.default_collation import functions_of_others, is_plain

COUNT = 16
X = torch.randn(COUNT, 4, generator=torch.Generator().manual_seed(1)).abs()


class Record:
    def __init__(self, x: Tensor) -> None:
        self.x = x


class Scaled(Tensor):
    """Stacks divide by the largest value."""

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        with torch._C.DisableTorchFunctionSubclass():
            found = function(*args, **(kwargs or {}))
            return found / found.max() if function is torch.stack else found


class Marked(Tensor):
    """Does what tensors do."""


class Centred(dict[str, Any]):
    """Takes the mean off what it is filled with."""

    def __init__(self, parts: dict[str, Any]) -> None:
        super().__init__({name: part - part.mean(0) if part.ndim > 1 else part for name, part in parts.items()})

    def update(self, parts: dict[str, Any]) -> None:  # type: ignore[override]
        self.__init__(parts)  # type: ignore[misc]


class Pair(NamedTuple):
    x: Any
    y: Any


class Of(Dataset[Any]):
    def __init__(self, make: Callable[[Tensor], Any]) -> None:
        self.make = make

    def __len__(self) -> int:
        return COUNT

    def __getitem__(self, index: int) -> Any:
        return self.make(X[index])


class Stream(IterableDataset[Any]):
    def __iter__(self) -> Iterator[Any]:
        return map(Record, X)


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> Callable[[Any, Any], None]:
    return lambda kind, function: monkeypatch.setitem(torchs.default_collate_fn_map, kind, function)


def stacked(records: Any, *, collate_fn_map: Any = None) -> Tensor:
    return torch.stack([record.x for record in records])


def divided(records: Any, *, collate_fn_map: Any = None) -> Tensor:
    x = stacked(records)
    return x / x.max()


def running() -> Callable[..., Tensor]:
    kept = [0.0]

    def keeping(records: Any, *, collate_fn_map: Any = None) -> Tensor:
        kept[0] = max(kept[0], float(stacked(records).max()))
        return stacked(records)

    return keeping


def train(dataset: Any) -> set[str]:
    model, engine = nn.Linear(4, 2), PrivacyEngine()
    _, optimizer, loader = engine.make_private(
        module=model,
        optimizer=torch.optim.SGD(model.parameters(), lr=0.1),
        data_loader=DataLoader(dataset, batch_size=8),
        noise_multiplier=1.0,
        max_grad_norm=1.0,
        poisson_sampling=False,
    )
    criterion = engine.per_example(lambda out: out.square().sum(1))
    for batch in loader:
        x = batch["x"] if isinstance(batch, dict) else batch
        criterion(model(x)).backward()
        optimizer.step()
    return {condition.name for condition in engine.guarantee(1e-5).conditions} - {"no ledger path", "each record once"}


@pytest.mark.parametrize("function", [lambda: divided, running])
@pytest.mark.parametrize("dataset", [lambda: Of(Record), Stream])
def test_a_registered_function_that_mixes_or_keeps_is_refused(function: Any, dataset: Any, registered: Any) -> None:
    registered(Record, function())
    with pytest.raises(CrossSampleLeakError, match="collate_fn default_collate"):
        train(dataset())


def test_a_function_put_in_the_place_of_torchs_is_refused_where_it_mixes(registered: Any) -> None:
    registered(Tensor, lambda rows, *, collate_fn_map=None: torch.stack(rows) - torch.stack(rows).mean(0))
    with pytest.raises(CrossSampleLeakError, match="collate_fn default_collate"):
        train(Of(lambda x: x))


@pytest.mark.parametrize("make", [lambda x: x.as_subclass(Scaled), lambda x: Centred({"x": x})])
def test_a_class_whose_stacks_mix_is_refused(make: Any) -> None:
    with pytest.raises(CrossSampleLeakError, match="collate_fn default_collate"):
        train(Of(make))


def test_a_registered_function_that_stacks_is_trained_with_nothing_on_trust(registered: Any) -> None:
    registered(Record, stacked)
    assert train(Of(Record)) == set()


@pytest.mark.parametrize("make", [lambda x: x, lambda x: {"x": x}])
def test_records_that_torch_stacks_are_trained_with_nothing_on_trust(make: Any) -> None:
    assert train(Of(make)) == set()


def test_torchs_own_functions_are_no_others() -> None:
    assert functions_of_others() == []


@pytest.mark.parametrize(
    "record",
    [X[0], (X[0], 1), [1.0, "a", b"b", None], {"x": np.zeros(3)}, OrderedDict(y=np.float32(1)), Pair(X[0], True),
     namedtuple("Two", "a b")(1, 2)],
)  # fmt: skip
def test_what_torch_and_numpy_stack_is_plain(record: Any) -> None:
    assert is_plain(record)


@pytest.mark.parametrize(
    "record",
    [Record(X[0]), (1, X[0].as_subclass(Marked)), {"x": Centred({"x": X[0]})}, np.zeros(3).view(np.matrix),
     MappingProxyType({})],
)  # fmt: skip
def test_what_a_class_of_others_stacks_is_not(record: Any) -> None:
    assert not is_plain(record)
