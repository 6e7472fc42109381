"""Does a dataset have one record several times? Seen where torch's own parts say which records they hand out.

A record at k indices is drawn by each of them and moves the clipped sum by k times its share, and ε is for one.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset, TensorDataset

from hushgrad.errors import DuplicateRecordError
from hushgrad.sampling.membership import MOST_DEPTH
from hushgrad.sampling.ownership import UserIds

Numbers = NDArray[np.int64]


class _Piece(NamedTuple):
    """Records of one dataset that has no parts: which, and their places in the whole."""

    of: Hashable
    records: Numbers
    places: Numbers


def require_each_once(dataset: Any, users: UserIds | None = None) -> None:
    """Refuse a dataset that has a record at several indices, by `Subset`, `ConcatDataset` and datasets around others.

    A dataset of another kind that holds exactly one dataset, of its own length, is taken to hand out record i of that
    as its own record i. What any other does with an index (`data[i % n]`) is its own and cannot be told.

    Args:
        dataset: map-style.
        users: whose each record is, where whole users are drawn: then all places of one record may be one user's.

    Raises:
        DuplicateRecordError: at set-up, before any data is read.
    """
    if not _has_parts(dataset):
        return
    whole = np.arange(len(dataset), dtype=np.int64)
    pieces: dict[Hashable, list[_Piece]] = {}
    for piece in _pieces(dataset, whole, whole, 0):
        pieces.setdefault(piece.of, []).append(piece)
    for found in pieces.values():
        records, places = (np.concatenate([piece[part] for piece in found]) for part in (1, 2))
        order = np.argsort(records, kind="stable")
        records, places = records[order], places[order]
        again = records[1:] == records[:-1]
        if users is not None and len(users.codes) == len(whole):
            again &= users.codes[places[1:]] != users.codes[places[:-1]]
        if again.any():
            raise _refusal(is_of_users=users is not None)


def _refusal(*, is_of_users: bool) -> DuplicateRecordError:
    if is_of_users:
        return DuplicateRecordError(
            "it has records several times (Subset, ConcatDataset), as records of different users",
            where="the dataset",
            cure="Give all places of one record the same user, or take each record once",
        )
    return DuplicateRecordError(
        "it has records several times (Subset, ConcatDataset), so that one of them would count several times for what "
        "is charged for one",
        where="the dataset",
        cure="Take each record once (more passes over the data, or a higher rate), and weight its loss by what follows "
        "from it alone; or draw whole people with all their records: UserSampling(users=...) with one id for all "
        "places of a record",
    )


def _has_parts(dataset: Any) -> bool:
    return isinstance(dataset, Subset | ConcatDataset) or _inner(dataset) is not None


def _inner(dataset: Any) -> Any:
    """Return the one dataset of the same length that another one is around; None where there is none such."""
    held = [value for value in getattr(dataset, "__dict__", {}).values() if isinstance(value, Dataset)]
    if len(held) != 1 or isinstance(dataset, Subset | ConcatDataset):
        return None
    try:
        return held[0] if len(held[0]) == len(dataset) else None  # type: ignore[arg-type]
    except TypeError:  # a stream
        return None


def _pieces(dataset: Any, chosen: Numbers, places: Numbers, depth: int) -> Iterator[_Piece]:
    """Yield of which datasets without parts the records `chosen` of a dataset are."""
    inner = _inner(dataset)
    if depth >= MOST_DEPTH or not len(chosen):
        yield _Piece(_name(dataset), chosen, places)
    elif isinstance(dataset, Subset):
        indices = _as_numbers(dataset.indices)
        if indices is None or len(indices) <= chosen.max():  # keys of another kind, or a length of its own
            yield _Piece(id(dataset), chosen, places)
        else:
            yield from _pieces(dataset.dataset, _from_zero(indices[chosen], dataset.dataset), places, depth + 1)
    elif isinstance(dataset, ConcatDataset):
        ends = np.asarray(dataset.cumulative_sizes, dtype=np.int64)
        part_of = np.searchsorted(ends, chosen, side="right")
        for number, part in enumerate(dataset.datasets):
            here = part_of == number
            yield from _pieces(part, chosen[here] - (ends[number - 1] if number else 0), places[here], depth + 1)
    elif inner is not None:
        yield from _pieces(inner, chosen, places, depth + 1)
    else:
        yield _Piece(_name(dataset), chosen, places)


def _name(dataset: Any) -> Hashable:
    """Return what is equal for datasets that hold the same records: tensors, where there are no others."""
    if type(dataset) is TensorDataset:
        return tuple((tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) for tensor in dataset.tensors)
    return id(dataset)


def _as_numbers(indices: Any) -> Numbers | None:
    """Return indices as numbers; None for what is none."""
    if isinstance(indices, Tensor):
        indices = indices.detach().cpu()
    if isinstance(indices, range):
        return np.arange(indices.start, indices.stop, indices.step, dtype=np.int64)
    try:
        values = np.asarray(indices)
    except ValueError:  # of lists of different lengths
        return None
    return values.astype(np.int64) if values.ndim == 1 and values.dtype.kind in "iu" else None


def _from_zero(indices: Numbers, dataset: Any) -> Numbers:
    """Return indices from the end as those from the beginning, where there is a length."""
    if not len(indices) or indices.min() >= 0:
        return indices
    try:
        return np.where(indices < 0, indices + len(dataset), indices)
    except TypeError:
        return indices
