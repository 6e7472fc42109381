"""Does one record's row depend on another record? `collate_fn` is asked again with some of its records exchanged.

What a collate function may do is pad: rows may become longer or shorter with the longest record. What lies beyond a
record's own values must then be one constant.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_rows import rows_agree_but_for_padding
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.collate_state import require_still
from hushgrad.guards.probing.rows import rows_agree
from hushgrad.guards.probing.trees import Path, tensors_at

RECORDS = 6
"""How many records a probe looks at, at most."""

CURE = (
    "Make each row from one example alone, padded by a constant, and cut by no other; mix, pack and normalise nothing "
    "over the batch"
)


def require_separate_rows(runs: CollateRuns, records: Sequence[Any]) -> tuple[dict[Path, int], frozenset[Path]] | None:
    """Refuse a collate function that lets one record change another one's row, or keeps what follows the records.

    Every other record is replaced by a copy of its neighbour and then left out; the rows of the kept ones must not
    change beyond their padding. Leaves without a row for each record are compared only where they are floating.

    Args:
        runs: of the function; it runs at most eight times, and some more where what it keeps has changed.
        records: at least two. They are copied, so nothing is done to them. Those with values that are not finite are
            left out, since one of them could make all rows alike; where all have such, they are taken as they are.

    Returns the axis of the records in each tensor that has one, and the paths of lists with an entry for each; None
    where nothing could be told, of a single record that is finite.

    Raises:
        CrossSampleLeakError: naming the part of the batch, or the place of what is kept.
    """
    finite = [record for record in records if _is_finite(record)]
    if len(finite) == 1:
        return None
    records = finite or records
    size = len(records)
    kept = [row for row in range(size) if row % 2 == 0]
    exchanged = [records[row] if row % 2 == 0 else records[row - 1] for row in range(size)]
    fewer = [records[row] for row in kept]
    require_still(runs, records, exchanged, kept)
    rows = Rows(runs, records, fewer)
    for changed, there in ((exchanged, kept), (fewer, list(range(len(kept))))):
        rows.require_same(changed, kept, there, "were exchanged or left out")
    return rows.axes(), rows.lists()


def _is_finite(record: Any) -> bool:
    if isinstance(record, Mapping):
        return all(map(_is_finite, record.values()))
    if isinstance(record, (tuple, list)):
        return all(map(_is_finite, record))
    if isinstance(record, (np.ndarray, np.generic)):
        return not np.issubdtype(record.dtype, np.inexact) or bool(np.isfinite(record).all())
    if isinstance(record, Tensor):
        return bool(record.isfinite().all())
    return not isinstance(record, float) or math.isfinite(record)


class Rows:
    """A batch of records, beside which others are held: the same records must have the same rows in both.

    Args:
        runs: of the function that makes the batches.
        records: of the batch.
        fewer: some of them; what has a row for each record is told by what this changes.
    """

    def __init__(self, runs: CollateRuns, records: Sequence[Any], fewer: Sequence[Any]) -> None:
        self._runs = runs
        self._records, self._fewer = records, fewer
        self._made: dict[bool, tuple[Any, Any]] = {}  # by whether they are without random numbers

    def require_same(
        self, changed: Sequence[Any], kept: Sequence[int], there: Sequence[int], what: str, *, alone: bool = False
    ) -> None:
        """Refuse a function that gives records other rows beside others.

        Args:
            changed: records of another batch.
            kept, there: the places of the same records in the first and in this one.
            what: what was done to the others, for messages.
            alone: whether there are none in `changed`, so that nothing can have cut these.

        Raises:
            CrossSampleLeakError: naming the part of the batch.
        """
        found = self._first_difference(changed, kept, there, alone, quiet=False)
        if found is not None:  # not because of random numbers, of which a padded batch draws more?
            found = self._first_difference(changed, kept, there, alone, quiet=True)
        if found is not None:
            raise CrossSampleLeakError(
                f"mixes examples: rows of others changed in {_called(found)} of the batch when some examples {what}",
                where=self._runs.place,
                cure=CURE,
            )

    def axes(self) -> dict[Path, int]:
        """Return the axis of the records in each tensor that has one."""
        return grown(*self._both(True), len(self._records), len(self._fewer))

    def lists(self) -> frozenset[Path]:
        """Return the paths of lists with an entry for each record."""
        return frozenset(_row_lists(*self._both(True), len(self._records), len(self._fewer)))

    def _both(self, quiet: bool) -> tuple[Any, Any]:
        if quiet not in self._made:
            whole, fewer = (self._runs.run(records, quiet=quiet).batch for records in (self._records, self._fewer))
            self._made[quiet] = whole, fewer
        return self._made[quiet]

    def _first_difference(
        self, changed: Sequence[Any], kept: Sequence[int], there: Sequence[int], alone: bool, *, quiet: bool
    ) -> Path | None:
        whole, less = self._both(quiet)
        other = less if changed is self._fewer else self._runs.run(changed, quiet=quiet).batch
        sizes = len(self._records), len(self._fewer)
        lists = set(_row_lists(whole, less, *sizes))
        axes = {path: axis for path, axis in grown(whole, less, *sizes).items() if not _is_in(path, lists)}
        found = _first_other_entry(whole, other, lists, kept, there)
        if found is not None:
            return found
        leaves = dict(tensors_at(other))
        for path, one in tensors_at(whole):
            if _is_in(path, lists):
                continue
            two = leaves.get(path)
            if two is None or one.ndim != two.ndim or one.dtype != two.dtype:
                return path
            if path in axes:  # a row for each record
                axis = axes[path]
                before, after = one.movedim(axis, 0)[list(kept)], two.movedim(axis, 0)[list(there)]
                same = rows_agree_but_for_padding(before, after, whole=alone)
            elif len(self._records) == len(changed) and one.shape == two.shape and one.is_floating_point():
                same = rows_agree(one, two)  # a statistic of the batch
            else:
                same = True
            if not same:
                return path
        return None


def grown(whole: Any, fewer: Any, size: int, less: int) -> dict[Path, int]:
    """Return for each tensor the first axis of `size` that has `less` with so many records."""
    there = dict(tensors_at(fewer))
    axes = {}
    for path, one in tensors_at(whole):
        two = there.get(path)
        if two is not None and one.ndim == two.ndim:
            places = [n for n in range(one.ndim) if (one.shape[n], two.shape[n]) == (size, less)]
            if places:
                axes[path] = places[0]
    return axes


def _row_lists(whole: Any, fewer: Any, size: int, less: int, path: Path = ()) -> Iterator[Path]:
    """Yield the paths of lists that have an entry for each record."""
    if type(whole) in (list, tuple) and type(fewer) is type(whole) and (len(whole), len(fewer)) == (size, less):
        yield path
    elif isinstance(whole, Mapping) and isinstance(fewer, Mapping):
        for key in whole.keys() & fewer.keys():
            yield from _row_lists(whole[key], fewer[key], size, less, (*path, key))
    elif isinstance(whole, (list, tuple)) and isinstance(fewer, (list, tuple)) and len(whole) == len(fewer):
        for key, (one, two) in enumerate(zip(whole, fewer, strict=True)):
            yield from _row_lists(one, two, size, less, (*path, key))


def _first_other_entry(
    whole: Any, other: Any, lists: Collection[Path], kept: Sequence[int], there: Sequence[int]
) -> Path | None:
    """Return the path of a list whose entries of kept records changed."""
    for path in lists:
        one, two = _at(whole, path), _at(other, path)
        if two is None or len(two) <= max(there):
            return path
        for row, place in zip(kept, there, strict=True):
            before, after = dict(tensors_at(one[row])), dict(tensors_at(two[place]))
            if before.keys() != after.keys():
                return path
            for part, tensor in before.items():
                if tensor.shape != after[part].shape or not rows_agree(tensor, after[part]):
                    return path
    return None


def _at(value: Any, path: Path) -> Any:
    for key in path:
        try:
            value = value[key]
        except (KeyError, IndexError, TypeError):
            return None
    return value


def _is_in(path: Path, lists: Collection[Path]) -> bool:
    return any(path[:length] in lists for length in range(len(path) + 1))


def _called(path: Path) -> str:
    return "part " + ".".join(str(key) for key in path) if path else "the tensor"
