"""Does one record's row depend on another record? `collate_fn` is asked again with some of its records exchanged.

What a collate function may do is pad: rows may become longer or shorter with the longest record. What lies beyond a
record's own values must then be one constant.
"""

from __future__ import annotations

import copy
import math
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
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
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts, with_tensors

RECORDS = 6
"""How many records a probe looks at, at most."""


def require_separate_rows(
    collate_fn: Callable[[list[Any]], Any], records: Sequence[Any]
) -> tuple[dict[Path, int], frozenset[Path]] | None:
    """Refuse a collate function that lets one record change another one's row.

    Every other record is replaced by a copy of its neighbour and then left out; the rows of the kept ones must not
    change beyond their padding. Leaves without a row for each record are compared only where they are floating.

    Args:
        collate_fn: list of records to batch; it runs at most eight times, fourteen where it draws random numbers.
        records: at least two. They are copied, so nothing is done to them. Those with values that are not finite are
            left out, since one of them could make all rows alike; where all have such, they are taken as they are.

    Returns the axis of the records in each tensor that has one, and the paths of lists with an entry for each; None
    where nothing could be told, of a single record that is finite.

    Raises:
        CrossSampleLeakError: naming the part of the batch.
    """
    finite = [record for record in records if _is_finite(record)]
    if len(finite) == 1:
        return None
    records = finite or records
    size = len(records)
    kept = [row for row in range(size) if row % 2 == 0]
    exchanged = [records[row] if row % 2 == 0 else records[row - 1] for row in range(size)]
    fewer = [records[row] for row in kept]
    for changed, there in ((exchanged, kept), (fewer, list(range(len(kept))))):
        found = _first_difference(collate_fn, records, fewer, changed, kept, there, quiet=False)
        if found is not None:  # not because of random numbers, of which a padded batch draws more?
            found = _first_difference(collate_fn, records, fewer, changed, kept, there, quiet=True)
        if found is not None:
            raise CrossSampleLeakError(
                f"mixes examples: rows of others changed in {_called(found)} of the batch when some examples were "
                f"exchanged or left out",
                where=f"collate_fn {_name(collate_fn)}",
                cure="Make each row from one example alone, padded by a constant; mix, pack and normalise nothing over "
                "the batch",
            )
    whole, less = _collated(collate_fn, records, True), _collated(collate_fn, fewer, True)
    return grown(whole, less, size, len(fewer)), frozenset(_row_lists(whole, less, size, len(fewer)))


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
    fewer: Sequence[Any],
    changed: Sequence[Any],
    kept: Sequence[int],
    there: Sequence[int],
    *,
    quiet: bool,
) -> Path | None:
    whole = _collated(collate_fn, records, quiet)
    less = _collated(collate_fn, fewer, quiet)
    other = less if changed is fewer else _collated(collate_fn, changed, quiet)
    lists = set(_row_lists(whole, less, len(records), len(fewer)))
    axes = {
        path: axis for path, axis in grown(whole, less, len(records), len(fewer)).items() if not _is_in(path, lists)
    }
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
            same = _rows_agree(one.movedim(axis, 0)[list(kept)], two.movedim(axis, 0)[list(there)])
        elif len(records) == len(changed) and one.shape == two.shape and one.is_floating_point():
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


def _collated(collate_fn: Callable[[list[Any]], Any], records: Sequence[Any], quiet: bool) -> Any:
    with ExitStack() as stack:
        stack.enter_context(forked_randomness([], SEED))
        if quiet:
            stack.enter_context(DeterministicMode())
        batch = with_parts(collate_fn(copy.deepcopy(list(records))), _as_tensor)
        return with_tensors(batch, lambda _, tensor: tensor.clone())  # it may fill one buffer again and again


def _as_tensor(path: Path, part: Any) -> Any:
    """Return arrays, real numbers and texts as tensors: a statistic of the batch may come as one."""
    if isinstance(part, np.ndarray) and part.dtype.kind in "biufc":
        try:
            return torch.from_numpy(part.copy())
        except TypeError:
            return DESCEND
    if isinstance(part, str):
        return torch.tensor(float(zlib.crc32(part.encode(errors="replace"))), dtype=torch.float64)
    return torch.tensor(float(part), dtype=torch.float64) if isinstance(part, (float, np.floating)) else DESCEND


def _rows_agree(one: Tensor, two: Tensor) -> bool:
    """Whether rows agree where both have values, and hold one constant beyond, on the right or on the left."""
    if one.shape[1:] == two.shape[1:]:
        return rows_agree(one, two)
    return any(_agree_but_for_padding(one, two, left) for left in (False, True))


def _agree_but_for_padding(one: Tensor, two: Tensor, left: bool) -> bool:
    shape = [min(a, b) for a, b in zip(one.shape, two.shape, strict=True)]
    parts, paddings = [], []
    for tensor in (one, two):
        whole = zip(tensor.shape, shape, strict=True)
        common = tuple(slice(size - length if left else 0, size if left else length) for size, length in whole)
        beyond = torch.ones(tensor.shape, dtype=torch.bool, device=tensor.device)
        beyond[common] = False
        parts.append(tensor[common])
        paddings.append(tensor[beyond])
    values = torch.cat(paddings)
    is_constant = bool(((values == values[:1]) | (values.isnan() & values[:1].isnan())).all())
    return is_constant and rows_agree(*parts)


def _called(path: Path) -> str:
    return "part " + ".".join(str(key) for key in path) if path else "the tensor"


def _name(collate_fn: Callable[[list[Any]], Any]) -> str:
    own = vars(type(collate_fn)).get("__name__")
    return str(collate_fn.__name__) if own is not None else type(collate_fn).__name__
