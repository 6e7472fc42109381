"""Does one record's row depend on another record? `collate_fn` is asked again with some of its records exchanged.

What a collate function may do is pad: rows may become longer or shorter with the longest record. What lies beyond a
record's own values must then be one constant.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import numpy as np
import torch
from torch import Tensor

from hushgrad.errors import CrossSampleLeakError
from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.guards.probing.rows import rows_agree
from hushgrad.guards.probing.state import forked_randomness
from hushgrad.guards.probing.trees import Path, tensors_at

RECORDS = 6
"""How many records a probe looks at, at most."""


def require_separate_rows(collate_fn: Callable[[list[Any]], Any], records: Sequence[Any]) -> bool:
    """Refuse a collate function that lets one record change another one's row.

    Every other record is replaced by a copy of its neighbour and then left out; the rows of the kept ones must not
    change beyond their padding. Leaves without a row for each record are compared only where they are floating.

    Args:
        collate_fn: list of records to batch; it runs four times, eight where it draws random numbers.
        records: at least two. They are copied, so nothing is done to them. Those with values that are not finite are
            left out, since one of them could make all rows alike; where all have such, they are taken as they are.

    Returns whether it could be told; not of a single record that is finite.

    Raises:
        CrossSampleLeakError: naming the part of the batch.
    """
    finite = [record for record in records if _is_finite(record)]
    if len(finite) == 1:
        return False
    records = finite or records
    size = len(records)
    kept = [row for row in range(size) if row % 2 == 0]
    exchanged = [records[row] if row % 2 == 0 else records[row - 1] for row in range(size)]
    for changed, there in ((exchanged, kept), ([records[row] for row in kept], list(range(len(kept))))):
        found = _first_difference(collate_fn, records, changed, kept, there, quiet=False)
        if found is not None:  # not because of random numbers, of which a padded batch draws more?
            found = _first_difference(collate_fn, records, changed, kept, there, quiet=True)
        if found is not None:
            raise CrossSampleLeakError(
                f"mixes examples: rows of others changed in {_called(found)} of the batch when some examples were "
                f"exchanged or left out",
                where=f"collate_fn {_name(collate_fn)}",
                cure="Make each row from one example alone, padded by a constant; mix, pack and normalise nothing over "
                "the batch",
            )
    return True


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


def _first_difference(
    collate_fn: Callable[[list[Any]], Any],
    records: Sequence[Any],
    changed: Sequence[Any],
    kept: Sequence[int],
    there: Sequence[int],
    *,
    quiet: bool,
) -> Path | None:
    whole, other = _collated(collate_fn, records, quiet), _collated(collate_fn, changed, quiet)
    for path, one in whole.items():
        two = other.get(path)
        if two is None or one.ndim != two.ndim or one.dtype != two.dtype:
            return path
        if one.ndim and one.shape[0] == len(records) and two.shape[0] == len(changed):  # a row for each record
            same = _rows_agree(one[list(kept)], two[list(there)])
        elif len(records) == len(changed) and one.shape == two.shape and one.is_floating_point():
            same = rows_agree(one, two)  # a statistic of the batch
        else:
            same = True
        if not same:
            return path
    return None


def _collated(collate_fn: Callable[[list[Any]], Any], records: Sequence[Any], quiet: bool) -> dict[Path, Tensor]:
    with ExitStack() as stack:
        stack.enter_context(forked_randomness([], SEED))
        if quiet:
            stack.enter_context(DeterministicMode())
        batch = collate_fn(copy.deepcopy(list(records)))
        return {path: tensor.clone() for path, tensor in tensors_at(batch)}  # it may fill one buffer again and again


def _rows_agree(one: Tensor, two: Tensor) -> bool:
    """Whether rows agree where both have values, and hold one constant beyond."""
    if one.shape[1:] == two.shape[1:]:
        return rows_agree(one, two)
    common = tuple(slice(0, min(a, b)) for a, b in zip(one.shape, two.shape, strict=True))
    if not rows_agree(one[common], two[common]):
        return False
    paddings = []
    for tensor in (one, two):
        beyond = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        beyond[common] = False
        paddings.append(tensor[beyond])
    values = torch.cat(paddings)
    return bool(((values == values[:1]) | (values.isnan() & values[:1].isnan())).all())


def _called(path: Path) -> str:
    return "part " + ".".join(str(key) for key in path) if path else "the tensor"


def _name(collate_fn: Callable[[list[Any]], Any]) -> str:
    own = vars(type(collate_fn)).get("__name__")
    return str(collate_fn.__name__) if own is not None else type(collate_fn).__name__
