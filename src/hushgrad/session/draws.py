"""Which sums share one draw of noise, and how they are laid out for it.

A draw has a fixed cost that is larger than that of a small parameter's noise. A large sum has a draw of its own.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushgrad.parallel.shards import Shards
from hushgrad.torch_internals import flattened, unflattened

# Sums up to here are cheaper to copy into one draw of noise than to give a draw of their own.
SMALL_VALUES = 1 << 16

TOGETHER_VALUES = 1 << 22
"""Of sums that are split over the processes so many values share a draw: it is a message, and takes memory whole."""


@dataclass(frozen=True)
class Draw:
    """The sums of one draw.

    Attributes:
        places: which they are.
        split: how they are split over the processes; None for sums of parameters that every process has whole.
        owner: the place in a row of the process that has these sums, and sends them to the others of its row once they
            have noise; None where every process has sums of its own.
        is_large: whether it is one sum that needs no copy.
    """

    places: tuple[int, ...]
    split: Shards | None
    owner: int | None
    is_large: bool

    def laid_out(self, totals: Sequence[Tensor]) -> Tensor:
        """Return the sums in one tensor: a large one as it is, small ones in memory of their own, split ones in rows.

        Noise may be written over all of these but a large one that shares its memory.
        """
        own = [totals[place] for place in self.places]
        if self.split is not None:
            return self.split.rows_of(own)
        if self.is_large:
            return own[0]
        return own[0].flatten().clone() if len(own) == 1 else flattened(own)

    def taken_apart(self, update: Tensor, totals: Sequence[Tensor]) -> Sequence[Tensor]:
        """Return the parts of an update, each for its parameter."""
        own = [totals[place] for place in self.places]
        if self.split is not None:
            return self.split.taken_apart(update, own)
        if self.is_large:
            return [update]
        # An empty one comes back without its shape.
        parts = zip(unflattened(update, own), own, strict=True)
        return [part if part.numel() else part.view_as(total) for part, total in parts]


def draws_of(totals: Sequence[Tensor], splits: Sequence[Shards | None], owners: Sequence[int | None]) -> list[Draw]:
    """Return the draws of all totals: the small ones of a kind together, then the large ones."""
    large: list[Draw] = []
    together: dict[tuple[torch.device, torch.dtype, Shards | None, int | None, int], list[int]] = {}
    counts: Counter[tuple[Shards, int | None]] = Counter()
    for place, (total, split, owner) in enumerate(zip(totals, splits, owners, strict=True)):
        if total.numel() > SMALL_VALUES:
            large.append(Draw((place,), split, owner, True))
            continue
        part = 0
        if split is not None:  # apart from those of other owners: all of a row come to the same draws of one
            part = counts[split, owner] // TOGETHER_VALUES
            counts[split, owner] += total.numel()
        together.setdefault((total.device, total.dtype, split, owner, part), []).append(place)
    small = [Draw(tuple(places), split, owner, False) for (_, _, split, owner, _), places in together.items()]
    return [*small, *large]


def owners_of_their_memory(draws: Sequence[Draw], sums: Sequence[Tensor]) -> list[bool]:
    """Return which sums may be overwritten: contiguous, and all of their memory is theirs alone.

    Writing over them spares fresh memory, each page of which costs a fault. Two parameters that are only ever added
    to one another have the same sum, which may be one tensor.
    """
    storages = [total.untyped_storage() for total in sums]
    readers = Counter(storage.data_ptr() for storage in storages)
    return [
        not draw.is_large
        or draw.split is not None
        or (total.is_contiguous() and storage.nbytes() == total.nbytes and readers[storage.data_ptr()] == 1)
        for draw, total, storage in zip(draws, sums, storages, strict=True)
    ]
