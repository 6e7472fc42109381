"""Does a record's row depend on others in batches of the item's size? What mixes may need many records to do so.

A class must be frequent, a word rare, a value far from the mean, a group full, or a row many places away: six records
show none of this. So two unlike records stand in batches as large as the item, one among many of the other and the
reverse; and the item's own records come again, with half of them exchanged and the first one left out.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations, cycle
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Path, Role
from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.collate_probe import Rows, is_ambiguous, is_finite
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.companions import MOST_READ, NOTHING, fitting
from hushgrad.guards.probing.rows import split_examples
from hushgrad.guards.probing.widths import Drawn, telling_rows
from hushgrad.sampling.extent import MOST_DEPTH

MOST_OWN = 256
"""How many records of an item are read again in the first examination of its collate function, at most."""

MOST_LATER = 32
"""The same in later ones."""

MOST_REORDERED = 10
"""The same where the function puts records into another order: each is then compared with each."""

UNTOLD = "that a record's row is the same beside many others, since collate_fn fails on some such batches"


def require_same_in_full_batches(
    runs: CollateRuns,
    records: Sequence[Any],
    size: int,
    roles: Mapping[Path, Role] = NOTHING,
    *,
    reorders: bool = False,
) -> bool:
    """Refuse a collate function that mixes records in large batches, or in rows that are far apart.

    Args:
        runs: of the function; it runs some eight times, and more where it puts records into another order or draws.
        records: those of an item that were read again, in any order.
        size: of the item.
        roles: what the parts of its batches hold, where several roles would fit.
        reorders: whether the function puts records into another order.

    Returns whether it could be told.

    Raises:
        CrossSampleLeakError: naming the part of the batch.
    """
    records = [record for record in records if is_finite(record)] or records
    if len(records) < 2 or size < 3:
        return True
    try:
        of_two = _require_same_of_two(runs, records[:MOST_READ], size, roles)
        return _require_same_of_own(runs, records[: MOST_REORDERED if reorders else size], roles) and of_two
    except HushgradError:
        raise
    except Exception:  # not every function takes one record many times
        return False


def own_records(drawn: Drawn, most: int) -> list[Any]:
    """Return records of an item, read once more: those that tell most first, and no more than fit."""
    rows = telling_rows(drawn, most)
    records = [drawn.record(row) for row in rows[:MOST_READ]]
    return records + [drawn.record(row) for row in rows[MOST_READ : min(map(fitting, records))]]


def _require_same_of_two(runs: CollateRuns, records: Sequence[Any], size: int, roles: Mapping[Path, Role]) -> bool:
    one, other = unlike(records)
    others = min(size, fitting(one), fitting(other)) - 2
    many = [one, other, *[other] * others]
    changes = [[one, other, *[one] * others], [one, other, *([one, other] * others)[:others]]]
    rows = Rows(runs, many, many[:-1], roles)
    return all(_tells(runs, rows, many, changed, [0, 1], [0, 1], "had other ones beside them") for changed in changes)


def _require_same_of_own(runs: CollateRuns, records: Sequence[Any], roles: Mapping[Path, Role]) -> bool:
    size, what = len(records), "were exchanged or left out"
    fewer = list(records[1:])
    rows = Rows(runs, records, fewer, roles)
    is_told = _tells(runs, rows, records, fewer, list(range(1, size)), list(range(size - 1)), what)
    halves = split_examples(size)
    for chosen, kept in (halves, halves[::-1]):
        donors = dict(zip(chosen, cycle(kept), strict=False))  # of the other half: what the first held is gone
        exchanged = [records[donors.get(row, row)] for row in range(size)]
        is_told &= _tells(runs, rows, records, exchanged, kept, kept, what)
    return is_told


def _tells(
    runs: CollateRuns,
    rows: Rows,
    records: Sequence[Any],
    changed: Sequence[Any],
    kept: Sequence[int],
    there: Sequence[int],
    what: str,
) -> bool:
    """Compare, unless it is said in two ways where records begin."""
    try:
        rows.require_same(changed, kept, there, what)
    except CrossSampleLeakError:
        if any(is_ambiguous(runs.run(part).batch, len(part), ()) for part in (records, changed)):
            return False
        raise
    return True


# Unlike records ------------------------------------------------------------------------------------------------------


def unlike(records: Sequence[Any]) -> tuple[Any, Any]:
    """Return the two records whose parts differ most: each part counts alike, be it a label or an image."""
    parts = [dict(_parts_of(record)) for record in records]
    spans = {place: _span([found[place] for found in parts if place in found]) for place in set().union(*parts)}

    def distance(pair: tuple[int, int]) -> float:
        one, other = parts[pair[0]], parts[pair[1]]
        return sum(_distance(one.get(place), other.get(place), span) for place, span in spans.items())

    first, second = max(combinations(range(len(records)), 2), key=distance)
    return records[first], records[second]


def _parts_of(value: Any, place: Path = ()) -> Iterator[tuple[Path, np.ndarray[Any, Any]]]:
    """Yield the numbers and texts in a record as arrays of numbers."""
    if isinstance(value, Tensor):
        value = value.detach().cpu().to_dense()
        value = (value.abs() if value.is_complex() else value.to(torch.float64)).numpy()
    if isinstance(value, (np.ndarray, np.generic, bool, int, float)):
        array = np.asarray(value)
        if array.dtype.kind in "biuf":
            yield place, array.astype(np.float64)
    elif isinstance(value, str):
        yield place, np.frombuffer(value.encode(errors="replace"), dtype=np.uint8).astype(np.float64)
    elif isinstance(value, Mapping) and len(place) < MOST_DEPTH:
        for key, part in value.items():
            yield from _parts_of(part, (*place, key))
    elif isinstance(value, (list, tuple)) and value and all(isinstance(part, (int, float)) for part in value):
        yield place, np.asarray(value, dtype=np.float64)
    elif isinstance(value, (list, tuple)) and len(place) < MOST_DEPTH:
        for key, part in enumerate(value):
            yield from _parts_of(part, (*place, key))


def _span(found: Sequence[np.ndarray[Any, Any]]) -> float:
    values = [array for array in found if array.size]
    return max(float(array.max()) for array in values) - min(float(array.min()) for array in values) if values else 0.0


def _distance(one: np.ndarray[Any, Any] | None, other: np.ndarray[Any, Any] | None, span: float) -> float:
    """Return how much one part differs, 1 at most: by how many of its values, and by the one that differs most."""
    if one is None or other is None or one.shape != other.shape:
        return 1.0
    if not one.size or not span or not np.isfinite(span):
        return float(not np.array_equal(one, other, equal_nan=True))
    apart = np.abs(one - other)
    return float((apart > 0).mean() + np.nan_to_num(apart.max()) / span) / 2
