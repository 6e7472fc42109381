"""Operands that nobody else can write to.

Between a backward and the step a loop may overwrite what the backward recorded: it standardises the batch for a
picture, or fills a staging buffer again, through a view, `.data` or NumPy. No version counter sees all of these. So
each operand is looked at once when a backward has ended. One that nobody else holds stays as it is: most activations
and output gradients. One that somebody could still reach (the batch itself, an activation that the model returned) is
copied.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cache
from itertools import product
from sys import getrefcount
from weakref import getweakrefcount

import torch
from torch import Tensor

from hushgrad.gradients.contribution import Contribution
from hushgrad.gradients.dense import Dense
from hushgrad.torch_internals import base_of, storage_handle, storage_use_count

Counts = tuple[int, int, int, int]
"""References to a tensor, to its storage, readers of that memory, references to the tensor that it is a view of."""


@torch.no_grad()
def own(uses: Iterable[list[Contribution]]) -> None:
    """Replace, in the lists, each contribution with operands that others hold by one of the same values.

    What the caller holds beside the lists counts as somebody else.

    Guarantee: a write to a batch, or to anything else that a loop can reach, after a backward has no effect on its
    gradients.
    """
    lists = list(uses)
    places = _shared(lists)
    if not places:
        return
    taken = [lists[index][place] for index, place in places]
    for index, place in places:
        lists[index][place] = _NOTHING
    for (index, place), part in zip(places, _set_apart(taken), strict=True):
        lists[index][place] = part


def _shared(lists: Sequence[list[Contribution]], counts: Counts | None = None) -> list[tuple[int, int]]:
    """Return where contributions stand with an operand that somebody else holds, too.

    This is done for each operand of each step, and written for speed: a look at one takes about half a microsecond.
    """
    references, storage_references, readers, base_references = counts or _counts_alone()
    found = []
    for index, parts in enumerate(lists):
        for place, part in enumerate(parts):
            for operand in part.operands:
                storage, base = operand.untyped_storage(), base_of(operand)
                if (
                    getrefcount(operand) != references
                    or getweakrefcount(operand)
                    or getrefcount(storage) != storage_references
                    or not storage.resizable()  # memory that torch did not take itself: NumPy's, a file's
                    or (
                        storage_use_count(storage_handle(storage)) != readers
                        if base is None
                        else (
                            storage_use_count(storage_handle(storage)) != readers + 1
                            or getrefcount(base) != base_references
                            or getweakrefcount(base)
                        )
                    )
                ):
                    found.append((index, place))
                    break
    return found


@cache
def _counts_alone() -> Counts:
    """Return the counts for operands that nobody else holds: how many references the look itself takes.

    They differ between versions of Python and torch, so they are read off fresh tensors: one of its own, and one that
    is a view.
    """
    for counts in product(range(1, 10), range(1, 10), range(1, 5), range(1, 10)):
        if not _shared([[Dense(torch.empty(1))], [Dense(torch.empty(1).unsqueeze(0))]], counts):
            return counts
    raise RuntimeError("this version of torch counts the holders of a tensor in an unknown way; please report it")


def _set_apart(parts: list[Contribution]) -> list[Contribution]:
    """Empty the list, and return its contributions on tensors of their own; memory that others hold is copied.

    Operands that share memory among themselves alone (the input of three projections) go on sharing it.
    """
    originals = {id(operand): operand for part in parts for operand in part.operands}
    own = {key: operand.detach() for key, operand in originals.items()}
    lent = [part.map_examples(lambda operand: own[id(operand)]) for part in parts]
    parts.clear()
    originals.clear()
    sharing = Counter(storage_handle(tensor.untyped_storage()) for tensor in own.values())
    copies = {id(tensor): tensor.clone() for tensor in own.values() if _is_held(tensor, sharing)}
    if not copies:
        return lent
    return [part.map_examples(lambda operand: copies.get(id(operand), operand)) for part in lent]


def _is_held(tensor: Tensor, sharing: Counter[int]) -> bool:
    """Whether others than the operands hold an operand's memory; `sharing` counts those, by the memory's address."""
    references, readers, is_own = _of_memory(torch.empty(1))
    more = sharing[storage_handle(tensor.untyped_storage())] - 1
    return _of_memory(tensor) != (references, readers + more, is_own)


def _of_memory(tensor: Tensor) -> tuple[int, int, bool]:
    storage = tensor.untyped_storage()
    return getrefcount(storage), storage_use_count(storage_handle(storage)), storage.resizable()


_NOTHING = Dense(torch.empty(0))
