"""Does what a collate function keeps follow the records? Other records must leave the same behind.

What is made of one batch alone and written over by the next is no state: a buffer with a row for each record, or an
entry of a cache that other lengths ask for. Then an item must be what it is, whatever batch came before it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.collate_rows import rows_agree_but_for_padding
from hushgrad.guards.probing.collate_runs import Collated, CollateRuns
from hushgrad.guards.probing.kept import DictKey, Key
from hushgrad.guards.probing.rows import all_agree
from hushgrad.guards.probing.state import SAMPLES, following
from hushgrad.guards.probing.state_values import agree, differs_by_itself


def require_still(runs: CollateRuns, records: Sequence[Any], exchanged: Sequence[Any], kept: Sequence[int]) -> None:
    """Refuse state that follows the records.

    Args:
        runs: of the function.
        records, exchanged: as many records, of which those at the places `kept` are the same.
        kept: some places.

    Raises:
        CrossSampleLeakError: naming the place of the state.
    """
    whole, changed = runs.run(records), runs.run(exchanged)
    keys = [key for key in following(whole.moved, changed.moved) if not runs.state.is_generator(key)]
    if not keys:
        return
    fewer = runs.run([records[row] for row in kept])
    buffers = [key for key in keys if _has_own_rows(runs, key, (whole, changed, fewer), len(records), kept)]
    others = [key for key in keys if key not in buffers and not _is_of_cache(runs, key, whole, changed)]
    if others:
        samples = [whole, *(runs.run(records) for _ in range(SAMPLES))]
        for key in others:
            *same, other = [_left(runs, key, found) for found in (*samples, changed)]
            if not differs_by_itself(same, other):
                raise _refusal(runs, key)
    for earlier, later, alone in ((exchanged, records, whole), (records, exchanged, changed)):
        after = runs.run(later, earlier=earlier)
        read = [key for key in buffers if not agree(_left(runs, key, after), _left(runs, key, alone))]
        if read or not all_agree(after.batch, alone.batch):
            raise _refusal(runs, (read or keys)[0])


def _has_own_rows(
    runs: CollateRuns, key: Key, found: tuple[Collated, Collated, Collated], size: int, kept: Sequence[int]
) -> bool:
    """Whether a place holds a tensor, or an array, in which each record has a row that no other record changes."""
    parts = [_as_tensor(_left(runs, key, one)) for one in found]
    if any(part is None or part.ndim != parts[0].ndim for part in parts):
        return False
    rows = list(kept)
    for axis in range(parts[0].ndim):
        if min(parts[0].shape[axis], parts[1].shape[axis]) >= size and parts[2].shape[axis] >= len(rows):
            whole, changed, fewer = (part.movedim(axis, 0) for part in parts)
            if (
                rows_agree_but_for_padding(whole[rows], changed[rows])
                and rows_agree_but_for_padding(whole[rows], fewer[: len(rows)])
                and agree(whole[size:], changed[size:])
            ):
                return True
    return False


def _as_tensor(value: Any) -> Any:
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value)
    return value if isinstance(value, Tensor) else None


def _is_of_cache(runs: CollateRuns, key: Key, whole: Collated, changed: Collated) -> bool:
    """Whether a place is an entry of a dictionary that one of the runs alone has made, or a list of keys.

    A value that both made is at a place of its own.
    """
    places = {*whole.moved, *changed.moved}
    if type(key[-1]) is str and key[-1] == "keys":
        last = len(key) - 1
        return any(place[:last] == key[:last] and isinstance(place[last], DictKey) for place in places if place[last:])
    is_entry = any(isinstance(part, DictKey) for part in key) and not runs.state.knows(key)
    return is_entry and (key in whole.moved) != (key in changed.moved)


def _left(runs: CollateRuns, key: Key, found: Collated) -> Any:
    return found.moved.get(key, runs.state.saved(key))


def _refusal(runs: CollateRuns, key: Key) -> CrossSampleLeakError:
    return CrossSampleLeakError(
        f"keeps {runs.state.place(key)!r}, which follows the records and may enter later batches",
        where=runs.place,
        cure="Make each batch from its own records alone: keep constants, counters of calls, and buffers that the "
        "next batch writes over, but no statistics of records",
    )
