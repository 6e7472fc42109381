"""Does a collate function write something of other records into a record of the dataset's? A later batch reads it.

The probe hands out copies, and looks at them afterwards. What was written into them follows other records where it is
another one beside others; and it stays where the dataset hands out what it keeps itself.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_draws import QUIET, sequences
from hushgrad.guards.probing.collate_runs import CollateRuns, as_tensors, each_copied
from hushgrad.guards.probing.rows import all_agree
from hushgrad.guards.probing.trees import Path, attributes_of, tensors_at
from hushgrad.guards.probing.widths import Drawn, telling_rows


def require_unwritten(runs: CollateRuns, drawn: Drawn, records: Sequence[Any]) -> None:
    """Refuse a collate function that writes into records of the dataset's own what follows other records.

    Args:
        runs: of the function.
        drawn: the item, of whose dataset one record is read twice where something was written.
        records: of the item, those of its telling rows; they are copied.

    Raises:
        CrossSampleLeakError: naming the part of the record.
    """
    if len(records) < 2 or drawn.records is not None:  # a stream's are read once
        return
    draws = next(sequences(runs.turn)) if runs.has_drawn else QUIET
    written = runs.run(records, draws).records
    if all(map(_are_equal, written, records)):
        return
    exchanged = [record if row % 2 == 0 else records[row - 1] for row, record in enumerate(records)]
    beside_others = runs.run(exchanged, draws).records
    rows = telling_rows(drawn, len(records))
    for row in range(0, len(records), 2):
        place = _first_difference(written[row], beside_others[row])
        if place is not None and _is_kept(runs, drawn, rows[row], records, place):
            part = "part " + ".".join(map(str, place)) if place else "the whole"
            raise CrossSampleLeakError(
                f"writes what follows other records into {part} of the dataset's own records, which later batches read",
                where=runs.place,
                cure="Leave the records as they are: write to copies (record.clone(), dict(record)), and make each row "
                "from one record alone",
            )


def _are_equal(one: Any, other: Any) -> bool:
    return _first_difference(one, other) is None


def _first_difference(one: Any, other: Any) -> Path | None:
    """Return the place of a number, text or tensor that differs between two records, or is in one of them only."""
    first, second = (dict(tensors_at(as_tensors(record))) for record in (one, other))
    places = {**first, **second}
    return next((p for p in places if not (p in first and p in second and all_agree(first[p], second[p]))), None)


def _is_kept(runs: CollateRuns, drawn: Drawn, row: int, records: Sequence[Any], place: Path) -> bool:
    """Whether a record that is read again holds what was written into an earlier reading, at a place or anywhere."""
    one, again = drawn.record(row), drawn.record(row)
    if _share_an_array(one, again, place):
        return True
    read: list[Any] = []

    def copied(given: Sequence[Any]) -> list[Any]:
        both = copy.deepcopy([one, again])  # what they share, their copies share
        read.append(both[1])
        return [both[0], *each_copied(given[1:])]

    runs.run([one, *records[1:]], QUIET, copied=copied)
    return _first_difference(read[0], again) is not None


def _share_an_array(one: Any, again: Any, place: Path) -> bool:
    """Whether two readings have an array of one memory at a place, which copies of arrays do not show."""
    for key in place:
        if type(one) is not type(again) or isinstance(one, np.ndarray):
            break
        one, again = (_parts(value).get(key) for value in (one, again))
    return isinstance(one, np.ndarray) and isinstance(again, np.ndarray) and bool(np.may_share_memory(one, again))


def _parts(value: Any) -> Mapping[Any, Any]:
    if isinstance(value, Mapping):
        return value
    return dict(enumerate(value)) if isinstance(value, (list, tuple)) else attributes_of(value)
