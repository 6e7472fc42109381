"""Does a dataset that reads several records at once (`__getitems__`) give each one what it gives alone?

Torch's loader reads a batch by it, where a dataset has it (a transform of whole batches, say), and `collate_fn` sees
what it made of all of them.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch.utils.data import Subset

from hushgrad.errors import CrossSampleLeakError, HushgradError
from hushgrad.guards.probing.calls import SEED
from hushgrad.guards.probing.collate_contents import first_other_content
from hushgrad.guards.probing.collate_rows import rows_agree_but_for_padding
from hushgrad.guards.probing.collate_runs import as_tensors
from hushgrad.guards.probing.deterministic_mode import DeterministicMode
from hushgrad.guards.probing.state import forked_randomness, randomness_used
from hushgrad.guards.probing.trees import DESCEND, Path, tensors_at, with_parts
from hushgrad.guards.probing.widths import Drawn

RECORDS, TOLD = 6, 2
"""How many records are read together, and of how many it is asked what each gives alone."""

UNTOLD = "records that the dataset reads together (`__getitems__`), which differ from one reading to the next"

Read = Callable[[list[int]], Sequence[Any]]


def require_separate_reads(drawn: Drawn) -> str | None:
    """Refuse a dataset that lets records influence each other as they are read together.

    Args:
        drawn: an item; some of its records are read once more, each alone and among others.

    Returns what could not be told, in words; None where it could, or where records are read one by one.

    Raises:
        CrossSampleLeakError: naming the part of a record.
    """
    read = _reader_of(drawn.dataset)
    indices = list(dict.fromkeys(drawn.indices))[:RECORDS]
    if drawn.records is not None or read is None or len(indices) < 2:
        return None
    for index in indices[:TOLD]:
        others = [other for other in indices if other != index]
        found = [_first(read, [index], quiet=False), _first(read, [index, *others], quiet=False)]
        drew = found[0][1] or found[1][1]
        if drew:
            found = [_first(read, [index], quiet=True), _first(read, [index, *others], quiet=True)]
        (alone, _), (among, _) = found
        place = first_difference(alone, among)
        if place is None:
            continue
        if drew or first_difference(alone, _first(read, [index], quiet=False)[0]) is not None:
            return UNTOLD
        part = "part " + ".".join(map(str, place)) if place else "the whole"
        raise CrossSampleLeakError(
            f"gives a record another value in {part} of it when others are read with it",
            where=f"{type(drawn.dataset).__name__}.__getitems__",
            cure="Make each record from itself alone, as __getitem__ does: take means, ranges and vocabularies from "
            "constants, and pad by a constant",
        )
    return None


def _reader_of(dataset: Any) -> Read | None:
    """Return what reads several records at once; None where each is read by itself (by torch's `Subset`, too)."""
    if type(dataset) is Subset and _reader_of(dataset.dataset) is None:
        return None
    read: Read | None = getattr(dataset, "__getitems__", None)
    return read if callable(read) else None


def _first(read: Read, indices: list[int], *, quiet: bool) -> tuple[Any, bool]:
    """Return the first of some records that are read together, and whether random numbers were drawn for them."""
    with ExitStack() as stack:
        stack.enter_context(forked_randomness([], SEED))
        if quiet:
            stack.enter_context(DeterministicMode())
        try:
            record = as_tensors(with_parts(read(indices)[0], _as_row))
        except HushgradError:
            raise
        except Exception as error:  # read one at a time it may lack what others have
            return error, True
        return record, randomness_used([], SEED)


def _as_row(_: Path, part: Any) -> Any:
    """Return a list of numbers as a tensor: it may be padded."""
    is_row = type(part) is list and part and all(type(value) in (int, float) for value in part)
    return torch.tensor(part) if is_row else DESCEND


def first_difference(one: Any, other: Any) -> Path | None:
    """Return the place at which two records differ by more than their padding; None where they do not."""
    first, second = dict(tensors_at(one)), dict(tensors_at(other))
    for path in {**first, **second}:
        if path not in first or path not in second:
            return path
        here, there = first[path], second[path]
        if here.ndim != there.ndim or here.dtype != there.dtype:
            return path
        if not rows_agree_but_for_padding(here[None], there[None]):
            return path
    return first_other_content(one, other)
