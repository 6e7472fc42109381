"""Which records a dataset has, as far as torch's own parts say it: indices of `Subset`, parts of `ConcatDataset`.

N and the charge rest on each of them being one record. A loop that writes others into `Subset.indices` gives some
records more often than they are charged for, and leaves the length as it was.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data import ConcatDataset, Dataset, Subset

from hushgrad.errors import ContractChangedError

MOST_DEPTH = 8
"""So many parts within parts are looked into."""

Place = tuple[str | int, ...]


class Membership:
    """Which records there were when a loader was made, to compare with.

    Which lists of indices there are and how long they are is looked at in every draw; what is in them at the beginning
    and the end of a pass, and where a list was put in the place of another: about 0.1 µs for each index of a list.

    Guarantee: no pass begins, and no draw is made from lists of indices put in the place of others, if `Subset` or
    `ConcatDataset`, at the root of a dataset or in the attributes of its parts, has other records than it had.
    """

    def __init__(self, dataset: Any) -> None:
        self._dataset = dataset
        self._parts = dict(_parts(dataset, ()))  # held, so that no other gets their addresses
        self._lengths = {place: len(part) for place, (part, is_list) in self._parts.items() if is_list}
        self._prints = {place: _print(part) for place, (part, is_list) in self._parts.items() if is_list}

    def require_same(self, *, whole: bool) -> None:
        """Look at it once more, `whole`: and at each index.

        Raises `ContractChangedError` where other records are there now.
        """
        if not self._parts:
            return
        now = dict(_parts(self._dataset, ()))
        for place, (part, is_list) in self._parts.items():
            other = now.get(place, (None, False))[0]
            if other is None or (not is_list and other is not part):
                raise _others("a part of the dataset was exchanged for another")
            if not is_list:
                continue
            if len(other) != self._lengths[place]:
                raise _others("the indices of a Subset have another number")
            if (whole or other is not part) and _print(other) != self._prints[place]:
                raise _others("the indices of a Subset are others")
            self._parts[place] = other, True


def _others(what: str) -> ContractChangedError:
    return ContractChangedError(
        f"{what} than when the loader was made; that no record comes more often than is charged rests on them",
        where="the dataset",
        cure="Leave Subset.indices and the parts of datasets as they are while training; draw in random order by the "
        "loader, and give records weights that follow no other record, in place of choosing them",
    )


def _parts(dataset: Any, place: Place) -> Iterator[tuple[Place, tuple[Any, bool]]]:
    """Yield places and what is there, with whether it is a list of indices, or else a dataset."""
    if len(place) >= MOST_DEPTH:
        return
    inner: dict[str | int, Any]
    if isinstance(dataset, Subset):
        yield (*place, "indices"), (dataset.indices, True)
        inner = {"dataset": dataset.dataset}
    elif isinstance(dataset, ConcatDataset):
        inner = dict(enumerate(dataset.datasets))
    else:  # what it does with those that it keeps is its own
        kept = getattr(dataset, "__dict__", {})
        for name in [name for name, value in kept.items() if isinstance(value, Dataset)]:
            yield from _parts(kept[name], (*place, name))
        return
    for name, part in inner.items():
        yield (*place, name), (part, False)
        yield from _parts(part, (*place, name))


def _print(indices: Any) -> bytes:
    """Return a fingerprint of indices, the same for a list, a tuple, a range, an array or a tensor of them."""
    if isinstance(indices, Tensor):
        indices = indices.detach().cpu()
    if isinstance(indices, range):
        indices = np.arange(indices.start, indices.stop, indices.step)
    try:
        values = np.asarray(indices)
    except ValueError:  # of lists of different lengths
        values = np.asarray(None)
    if values.dtype.kind in "iu":
        values = values.astype(np.int64)
    content = values.tobytes() if values.dtype.kind in "biufSU" else repr(list(indices)).encode()
    return hashlib.blake2b(repr(values.shape).encode() + content, digest_size=16).digest()
