"""Does a record's row depend on how long its companions are? A long and a short record are collated with many kinds.

A collate function that cuts to the shortest record, to the median or to the mean gives a long record another row beside
short ones. So one long and one short record stand beside long ones, beside short ones, beside both, and alone: their
rows must be the same in all of these, padding aside.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.capture.axes.layout import Path, Role
from hushgrad.errors import HushgradError
from hushgrad.guards.probing.collate_probe import Rows
from hushgrad.guards.probing.collate_runs import CollateRuns
from hushgrad.guards.probing.contents import contents
from hushgrad.sampling.extent import extent_of, lengths_of

NOTHING: Mapping[Path, Role] = MappingProxyType({})

MOST_PAIRS = 3
"""So many pairs of a long and a short record are tried: records may have several lengths."""

MOST_READ = 12
"""How many records of an item are read again, at most, to find such pairs."""

FEWEST, MOST_HELD = 8, 1 << 24
"""Batches are as large as the item, so that a high quantile of the lengths moves as well; of large records, smaller."""

UNTOLD = "that a record's row does not depend on how long its companions are, since collate_fn fails on some of them"


def require_same_beside_any(
    runs: CollateRuns, records: Sequence[Any], size: int, roles: Mapping[Path, Role] = NOTHING
) -> bool:
    """Refuse a collate function that cuts, or else changes, a record by the lengths of the others.

    Args:
        runs: of the function; it runs at most ten times for each pair of records.
        records: some of an item, those with the most and the fewest values among them.
        size: of the item.
        roles: what the parts of its batches hold, where several roles would fit.

    Returns whether it could be told; where all are equally long there is nothing to tell.

    Raises:
        CrossSampleLeakError: naming the part of the batch.
    """
    is_told = True
    for long, short in _pairs(records):
        others = max(2, min(size, fitting(long)) - 2)
        both = [short, long] * others
        alone = [long]
        rows = Rows(runs, [long, short, *[short] * others], alone, roles)
        batches = [
            ([long, short, *[long] * others], [0, 1], [0, 1], False),
            ([long, short, *both[:others]], [0, 1], [0, 1], False),
            (alone, [0], [0], True),
            ([short], [1], [0], True),
        ]
        if runs.has_drawn:  # as many numbers are drawn for as many records
            batches += [([long] * (2 + others), [0], [0], True), ([short] * (2 + others), [1], [0], True)]
        for changed, kept, there, is_alone in batches:
            try:
                rows.require_same(changed, kept, there, "had longer or shorter ones beside them", alone=is_alone)
            except HushgradError:
                raise
            except Exception:  # not every function takes one record alone, or one of them twice
                is_told = False
    return is_told


def _pairs(records: Sequence[Any]) -> Iterator[tuple[Any, Any]]:
    """Yield a longest and a shortest record for each kind of length that differs among records, each pair once."""
    lengths = [dict(_measures(record)) for record in records]
    shared = [place for place in lengths[0] if all(place in found for found in lengths)]
    chosen: dict[tuple[int, int], None] = {}
    for place in shared:
        own = [found[place] for found in lengths]
        if max(own) > min(own):
            chosen[own.index(max(own)), own.index(min(own))] = None
    for long, short in list(chosen)[:MOST_PAIRS]:
        yield records[long], records[short]


def fitting(record: Any) -> int:
    """Return how many copies of a record a batch may hold."""
    return max(FEWEST, MOST_HELD // _held(record))


def _held(record: Any) -> int:
    return max(1, extent_of(record), *(tensor.numel() for _, tensor in _tensors_of(record)))


def _measures(record: Any) -> Iterator[tuple[Any, int]]:
    """Yield the lengths of a record, and how much of its tensors comes before what is repeated at their ends."""
    yield "all", extent_of(record)
    yield from lengths_of(record)
    for place, tensor in _tensors_of(record):
        if tensor.ndim and tensor.shape[0] > 1 and tensor.numel():
            row = tensor.reshape(1, tensor.shape[0], -1)
            yield (place, "from the left"), int(contents(row)[0])
            yield (place, "from the right"), int(contents(row.flip(1))[0])


def _tensors_of(record: Any) -> Iterator[tuple[Any, Tensor]]:
    parts = record.items() if isinstance(record, dict) else enumerate(record) if isinstance(record, tuple) else []
    for place, part in [*parts, ("itself", record)]:
        if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
            part = torch.from_numpy(part.copy())
        if isinstance(part, Tensor):
            yield place, part
