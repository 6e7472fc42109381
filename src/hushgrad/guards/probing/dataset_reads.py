"""Does a dataset make a record of that record alone? Some are read again from copies of the dataset.

Where one of them follows rows of several records (a partner to mix with, negatives of others, a mean), or the records
that were read before it, it is refused. Values that a dataset keeps and that follow earlier records (a running maximum)
are told: its loop may read them.
"""

from __future__ import annotations

import warnings
from collections.abc import Hashable, Mapping
from contextlib import suppress
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, IterableDataset, Subset

from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.collate_runs import as_tensors
from hushgrad.guards.probing.dataset_copies import (
    MOST_VALUES,
    DatasetCopy,
    Store,
    all_of_one_row,
    enlarged,
    is_of_somebody,
    parts_of_dataset,
    private,
    with_exchanged,
)
from hushgrad.guards.probing.joint_reads import first_difference
from hushgrad.guards.probing.kept import DictKey, Key, kept_by
from hushgrad.guards.probing.settings import MOST_PLACES, told
from hushgrad.guards.probing.state import State, forked_randomness
from hushgrad.guards.probing.widths import Drawn
from hushgrad.printable import full_name

RECORDS, LAST, TOLD, SEEDS = 6, 2, 2, (1, 2, 3, 4)
"""How many records are read first, how many after them, of how many others' rows are taken away, with which draws."""

ENLARGED = (1024.0, -1024.0)
"""Of the record read first: what is kept may be as large as any record, or as small."""

UNCOPIED = "whether the dataset makes a record of others, or keeps what follows them, since it cannot be copied"
UNTOLD = "whether the dataset makes a record of several records' rows, which are too large to be exchanged"

_CURE = (
    "Make each record of its own row alone, in __getitem__: mix, compare and draw partners or negatives from public "
    "data or from constants, keep no statistics of records; or let one record be a person with all that belongs to it "
    "(UserSampling)"
)


class _UnreadableError(Exception):
    """A record cannot be read."""


class DatasetReads:
    """Reads records of one session's dataset again: at its first item of two records or more, and at looks.

    Attributes:
        keeps: whether the dataset keeps values that follow records read before.
        untold: what could not be told, in words.
    """

    def __init__(self) -> None:
        self._before: DatasetCopy | None = None
        self._is_due = True
        self.keeps = False
        self.untold: list[str] = []

    def before_draw(self, dataset: Any, *, is_look: bool = False) -> None:
        """The next item is going to be read; `is_look`: it is one of those that are looked at."""
        if self._before is not None or not (self._is_due or is_look) or UNCOPIED in self.untold:
            return
        if isinstance(dataset, IterableDataset) or not is_of_somebody(dataset):  # a stream cannot be read again
            self._is_due = False
            return
        try:
            self._before = _copied(dataset)
        except _UnreadableError:
            self.untold.append(UNCOPIED)

    def examine(self, drawn: Drawn) -> None:
        """Read some of an item's records again.

        Raises:
            CrossSampleLeakError: a record follows others.
        """
        before = self._before
        if before is None or drawn.records is not None:
            return
        indices = list(dict.fromkeys(drawn.indices))[:RECORDS]
        if len(indices) < 2:
            return
        # Copies are read; what their code keeps elsewhere (variables of a file, classes) is put back.
        elsewhere = State(drawn.dataset, parameters=False, beside=before.stores)
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of arrays that share a row
                for index in indices[:TOLD]:
                    with suppress(_UnreadableError):
                        self._require_own_row(drawn.dataset, index)
                with suppress(_UnreadableError):
                    self._read_after_others(before, indices)
        finally:
            elsewhere.restore()
        self._is_due, self._before = False, None

    # Of other rows ---------------------------------------------------------------------------------------------------

    def _require_own_row(self, dataset: Any, index: int) -> None:
        shared = _copied(dataset)
        if not shared.stores:
            return
        if first_difference(_read(shared, index, 1), _read(_copied(dataset), index, 1)) is not None:
            return  # it draws from what cannot be seeded
        owned = _rows_of_stores(dataset, index)

        def own(store: Any) -> Any:
            row = owned.get(id(store))
            return self._private(store) if row is None else all_of_one_row(store, row)

        for seed in SEEDS:
            base = _read(_copied(dataset), index, seed)
            if not _differs(base, _copied(dataset, own), index, seed):
                continue
            for store in shared.stores:
                self._require_one_row(dataset, store, base, index, seed)

    def _require_one_row(self, dataset: Any, store: Any, base: Any, index: int, seed: int) -> None:
        """Refuse a record that follows several rows of one store, whichever they are."""

        def follows(new: Any) -> bool:
            return _differs(
                base, _copied(dataset, lambda found: new if found is store else self._private(found)), index, seed
            )

        def moves(first: int, end: int) -> bool:
            new = with_exchanged(store, range(first, end))
            return follows(self._private(store) if new is None else new)

        first, end = 0, len(store)
        if not moves(first, end):
            return
        while end - first > 1:
            middle = (first + end) // 2
            if moves(first, middle):
                end = middle
            elif moves(middle, end):
                first = middle
            else:
                break
        if end - first > 1 or follows(all_of_one_row(store, first)):
            raise CrossSampleLeakError(
                "makes a record of the rows of several records", where=_called(dataset), cure=_CURE
            )

    def _private(self, store: Any) -> Any:
        """Return a copy: a cache that is read from what was altered must not keep it."""
        new = private(store)
        if new is None:
            self.untold.append(UNTOLD)
            raise _UnreadableError
        return new

    # After others ----------------------------------------------------------------------------------------------------

    def _read_after_others(self, before: DatasetCopy, indices: list[int]) -> None:
        for last in indices[:LAST]:
            found = [_after(before, first, last) for first in indices if first != last]
            first = next(index for index in indices if index != last)
            again = _after(before, first, last)
            if first_difference(found[0][0], again[0]) is not None:
                return
            if any(first_difference(found[0][0], record) is not None for record, _ in found[1:]):
                raise CrossSampleLeakError(
                    "gives a record another value after other records were read", where=_called(before.dataset),
                    cure=_CURE,
                )  # fmt: skip
            for by in ENLARGED:
                with suppress(_UnreadableError):
                    record, kept = _after(before, first, last, by)
                    found.append((record, {key: value for key, value in kept.items() if not _is_entry(key)}))
            steady = {key for key, value in found[0][1].items() if again[1].get(key) == value}
            self.keeps |= any(key in kept and kept[key] != found[0][1][key] for _, kept in found[1:] for key in steady)


def _copied(dataset: Any, store: Store | None = None) -> DatasetCopy:
    try:
        return DatasetCopy(dataset, store)
    except Exception:  # of a class that cannot be copied
        raise _UnreadableError from None


def _differs(base: Any, altered: DatasetCopy, index: int, seed: int) -> bool:
    try:
        return first_difference(base, _read(altered, index, seed)) is not None
    except _UnreadableError:
        return True


def _read(copied: DatasetCopy, index: int, seed: int) -> Any:
    with forked_randomness([], seed):
        try:
            return as_tensors(copied.dataset[index])
        except HushgradError:
            raise
        except Exception:
            raise _UnreadableError from None


def _after(before: DatasetCopy, first: int, last: int, by: float = 1.0) -> tuple[Any, Mapping[Key, Hashable]]:
    """Return a record that is read after another one, and what the dataset keeps then; `by`: the first is enlarged."""
    owned = _rows_of_stores(before.dataset, first)
    given: dict[int, Any] = {}
    held = []

    def alter(store: Any) -> Any:
        row = owned.get(id(store))
        if by == 1:
            return store
        new = private(store) if row is None else enlarged(store, row, by)
        if new is None:
            raise _UnreadableError
        held.append(new)
        given[id(new)] = store
        return new

    earlier = _copied(before.dataset, alter)
    _read(earlier, first, SEEDS[0])
    copied = _copied(earlier.dataset, lambda store: given.get(id(store), store))
    record = _read(copied, last, SEEDS[1])
    cells = kept_by(copied.dataset, *before.stores, places=MOST_PLACES).cells
    return record, {key: told(value) for key, value in cells if _is_number(value)}


def _rows_of_stores(dataset: Any, index: int) -> dict[int, int]:
    """Return the row that a record has in each store of a dataset, by the store's address."""
    rows = {id(part): row for part, row in _places(dataset, index)}
    return {
        id(store): rows[id(part)]
        for part in parts_of_dataset(dataset)
        if id(part) in rows
        for store in _stores_of(part)
    }


def _is_entry(key: Key) -> bool:
    """Whether a place is one of a dictionary, which may be that of a record."""
    return any(isinstance(part, DictKey) for part in key)


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.numel() <= MOST_VALUES
    if isinstance(value, np.ndarray):
        return value.size <= MOST_VALUES and value.dtype.kind in "biufc"
    if isinstance(value, tuple):  # a list of numbers
        return any(isinstance(part, float | complex) for part in value)
    return isinstance(value, bool | float | complex | np.floating | np.bool_)


def _stores_of(part: Any) -> list[Any]:
    return _copied(part).stores


def _places(dataset: Any, index: int) -> list[tuple[Any, int]]:
    """Return the parts that a record is read through, as far as torch says it, and its row in each."""
    found = [(dataset, index)]
    while True:
        part, row = found[-1]
        if isinstance(part, Subset):
            found.append((part.dataset, int(part.indices[row])))
        elif isinstance(part, ConcatDataset):
            ends = np.asarray(part.cumulative_sizes)
            number = int(np.searchsorted(ends, row, side="right"))
            found.append((part.datasets[number], row - int(ends[number - 1] if number else 0)))
        else:
            held = [value for value in parts_of_dataset(part, 1) if value is not part]
            if len(held) != 1 or len(held[0]) != len(part):
                return found
            found.append((held[0], row))


def _called(dataset: Any) -> str:
    own = [part for part in parts_of_dataset(dataset) if is_of_somebody(part)]
    return f"{full_name(type(own[-1]))}.__getitem__"
