"""A copy of a dataset to read from: its own small values are copied, and what holds a row for each record is shared.

Or put in the place of others: with the same row everywhere, or with some rows exchanged.
"""

from __future__ import annotations

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from hushgrad.guards.probing.user_code import is_users_class

DEPTH = 6
MOST_ENTRIES = 1000
"""Larger containers are caches or tables, and are shared."""

MOST_VALUES = 1 << 14
"""So are larger tensors and arrays."""

MOST_ALTERED = 1 << 24
"""Tensors and arrays of more values are not copied to exchange some of their rows."""

CONTAINERS = (list, tuple, dict, set, deque, OrderedDict, defaultdict)
TORCHS = (Subset, ConcatDataset, TensorDataset)

Store = Callable[[Any], Any]


def is_of_somebody(dataset: Any) -> bool:
    """Return whether code of somebody else's than torch's reads the records of a dataset."""
    return any(isinstance(part, Dataset) and type(part) not in TORCHS for part in parts_of_dataset(dataset))


def parts_of_dataset(dataset: Any, depth: int = DEPTH) -> Iterator[Any]:
    """Yield a dataset and those that it holds as torch's own parts, or in its attributes."""
    yield dataset
    if depth and isinstance(dataset, Dataset):
        held = list(getattr(dataset, "__dict__", {}).values())
        held += getattr(dataset, "datasets", []) if isinstance(dataset, ConcatDataset) else []
        for value in held:
            if isinstance(value, Dataset):
                yield from parts_of_dataset(value, depth - 1)


class DatasetCopy:
    """A copy to read from.

    Args:
        dataset: map-style; nothing of it changes.
        store: what is put in the place of what holds a row for each record; None: that itself, which is shared.

    Attributes:
        dataset: the copy.
        stores: what holds a row for each record, in parts of somebody else's.
    """

    def __init__(self, dataset: Any, store: Store | None = None) -> None:
        self._store = store
        self._made: dict[int, Any] = {}
        self._held: list[Any] = []  # so that no other gets its address
        self.stores: list[Any] = []
        self.dataset = self._of(dataset, 0, DEPTH)

    def _of(self, value: Any, count: int, depth: int) -> Any:
        if id(value) not in self._made:
            self._held.append(value)
            self._made[id(value)] = self._new(value, count, depth)
        return self._made[id(value)]

    def _new(self, value: Any, count: int, depth: int) -> Any:
        if is_store(value, count):
            self.stores.append(value)
            return value if self._store is None else self._store(value)
        if isinstance(value, torch.Generator):
            return torch.Generator(value.device).set_state(value.get_state())
        if isinstance(value, np.random.Generator | np.random.RandomState | random.Random):
            return copy.deepcopy(value)
        if type(value) is Tensor:
            is_small = value.layout is torch.strided and value.numel() <= MOST_VALUES
            return value.detach().clone() if is_small else value
        if type(value) is np.ndarray:
            return value.copy() if value.size <= MOST_VALUES else value
        if not depth:
            return value
        if type(value) in CONTAINERS and len(value) <= MOST_ENTRIES:
            return self._container(value, count, depth - 1)
        if isinstance(value, Dataset) or (is_users_class(type(value)) and hasattr(value, "__dict__")):
            return self._object(value, count, depth - 1)
        return value

    def _container(self, value: Any, count: int, depth: int) -> Any:
        if type(value) is tuple:
            return tuple(self._of(part, count, depth) for part in value)
        new = copy.copy(value)
        self._made[id(value)] = new
        if isinstance(new, dict):
            for key, part in value.items():
                new[key] = self._of(part, count, depth)
        elif not isinstance(new, set):
            for place, part in enumerate(value):
                new[place] = self._of(part, count, depth)
        return new

    def _object(self, value: Any, count: int, depth: int) -> Any:
        new = copy.copy(value)
        if new is value:
            return value
        self._made[id(value)] = new
        if isinstance(value, Dataset):
            count = 0 if type(value) in TORCHS else len(value)  # type: ignore[arg-type]
        for name, part in list(vars(value).items()):
            vars(new)[name] = self._of(part, count, depth)
        return new


def copied_or_itself(dataset: Any) -> Any:
    """Return a copy to read from, or the dataset itself where its class cannot be copied."""
    try:
        return DatasetCopy(dataset).dataset
    except Exception:
        return dataset


def is_store(value: Any, count: int) -> bool:
    """Return whether something holds a row for each of `count` records."""
    if count < 2 or type(value) not in (Tensor, np.ndarray, list, tuple):
        return False
    return (not isinstance(value, Tensor | np.ndarray) or value.ndim > 0) and len(value) == count


def all_of_one_row(store: Any, row: int, count: int | None = None) -> Any:
    """Return what has one row in all places, `count` or as many as there are, in the memory of that row alone."""
    count = len(store) if count is None else count
    if isinstance(store, Tensor):
        one = store[row : row + 1].detach().clone()
        return one.expand(count, *one.shape[1:])
    if isinstance(store, np.ndarray):
        rows = store[row : row + 1].copy()
        return np.lib.stride_tricks.as_strided(rows, (count, *rows.shape[1:]), (0, *rows.strides[1:]))
    return type(store)([store[row]] * count)


def enlarged(store: Any, row: int, by: float) -> Any:
    """Return what has one of its rows in all places, times a number where the row is floating point."""
    if isinstance(store, list | tuple):
        return type(store)([store[row] * by if is_floating(store[row]) else store[row]] * len(store))
    return (
        all_of_one_row(store[row : row + 1] * by, 0, len(store)) if is_floating(store) else all_of_one_row(store, row)
    )


def private(store: Any) -> Any | None:
    """Return a copy of a store, so that what is written to it is lost; None where that is too much to copy."""
    if isinstance(store, list | tuple):
        return type(store)(store)
    if (store.numel() if isinstance(store, Tensor) else store.size) > MOST_ALTERED:
        return None
    return store.detach().clone() if isinstance(store, Tensor) else store.copy()


def is_floating(value: Any) -> bool:
    """Return whether a number, a tensor or an array is floating point."""
    if isinstance(value, Tensor):
        return value.is_floating_point()
    return value.dtype.kind == "f" if isinstance(value, np.ndarray) else isinstance(value, float)


def with_exchanged(store: Any, rows: Sequence[int]) -> Any | None:
    """Return a copy in which some rows are those from the other end; None where that is too much to copy."""
    size = len(store)
    others = [size - 1 - row if 2 * row != size - 1 else (row + 1) % size for row in rows]
    copied = private(store)
    if copied is None:
        return None
    if isinstance(store, list | tuple):
        new = list(store)
        for row, other in zip(rows, others, strict=True):
            new[row] = store[other]
        return type(store)(new)
    copied[list(rows)] = store[others]
    return copied
