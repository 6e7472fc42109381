"""What a stream is made of, as far as it can be known: whether one record moves those behind it, or comes twice.

Batches of a stream are charged as disjoint ones under zero-out neighbours: a record's contribution is replaced by
nothing, and all others keep their places. That is no claim where a record decides by its values which place the next
ones have: filters, packing, batches by length. A shuffle buffer draws places by random numbers of its own, whatever the
records are, and moves nobody.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

from torch.utils.data import IterableDataset

from hushgrad.errors import UnsupportedSamplerError
from hushgrad.printable import full_name

MOST_PARTS = 1000

_DROPS = "leaves records out by their values"
_REPEATS = "hands records out several times"
_PACKS = "makes other numbers of records out of those it reads (packing, tokenising into blocks)"
_GROUPS = "groups records by their values"

_MOVING: dict[str, dict[str, str]] = {
    "torch": {
        "FilterIterDataPipe": _DROPS,
        "GrouperIterDataPipe": _GROUPS,
        "UnBatcherIterDataPipe": _PACKS,
        "_DemultiplexerIterDataPipe": _GROUPS,
    },
    "torchdata": {
        "FlatMapperIterDataPipe": _PACKS,
        "ShuffledFlatMapperIterDataPipe": _PACKS,
        "CyclerIterDataPipe": _REPEATS,
        "RepeaterIterDataPipe": _REPEATS,
        "BucketBatcherIterDataPipe": _GROUPS,
        "MaxTokenBucketizerIterDataPipe": _GROUPS,
        "Filter": _DROPS,
        "Unbatcher": _PACKS,
        "Cycler": _REPEATS,
    },
    "datasets": {"FilteredExamplesIterable": _DROPS, "RepeatExamplesIterable": _REPEATS},
}
"""Classes that move records, by the package they come from; subclasses count."""

_ITERATORS: dict[type, str] = {
    filter: _DROPS,
    itertools.filterfalse: _DROPS,
    itertools.takewhile: _DROPS,
    itertools.dropwhile: _DROPS,
    itertools.groupby: _GROUPS,
    itertools.cycle: _REPEATS,
}


def require_places_kept(dataset: Any) -> None:
    """Refuse a stream with a known part that moves or repeats records.

    Reads the objects that it is made of and none of its records. What a stream's own code does (an `if` in a generator)
    is not seen: that is a named condition of its guarantee.

    Raises `UnsupportedSamplerError` naming the part.
    """
    for part in _parts_of(dataset):
        why = _moves(part)
        if why is not None:
            raise UnsupportedSamplerError(
                f"the stream has a part of the class {full_name(type(part))}, which {why}: one record would then "
                f"decide in which batches those behind it are, or come twice, and all batches of a pass are charged "
                f"as one",
                cure="Do that beforehand, once, and stream the result from files; or leave records in their places "
                "(map each to one record, and give those that are not wanted a loss of 0). A map-style dataset of the "
                "result can be sampled, too",
            )


def _moves(part: object) -> str | None:
    if type(part) in _ITERATORS:
        return _ITERATORS[type(part)]
    for kind in type(part).__mro__:
        why = _MOVING.get(_package(kind), {}).get(kind.__name__)
        if why is not None:
            return why
    if _package(type(part)) == "datasets":
        if _fields(part).get("batched") is True:  # a map over batches may return any number of records
            return _PACKS
        if _fields(part).get("stopping_strategy") == "all_exhausted":
            return _REPEATS
    return None


def _parts_of(dataset: Any) -> Iterator[object]:
    """Yield the objects that a stream is made of: it, and those of data packages and streams that they hold."""
    waiting, seen = [dataset], {id(dataset)}
    while waiting and len(seen) < MOST_PARTS:
        part = waiting.pop()
        yield part
        for value in _held(part):
            if id(value) not in seen and (isinstance(value, IterableDataset) or _is_of_data(type(value))):
                seen.add(id(value))
                waiting.append(value)


def _held(part: object) -> Iterator[object]:
    for value in _fields(part).values():
        if isinstance(value, (list, tuple)):
            yield from value
        elif isinstance(value, dict):
            yield from value.values()
        else:
            yield value


def _fields(part: object) -> dict[str, Any]:
    try:
        return vars(part)
    except TypeError:
        return {}


def _is_of_data(kind: type) -> bool:
    return (
        kind in _ITERATORS or _package(kind) in ("torchdata", "datasets") or kind.__module__.startswith("torch.utils")
    )


def _package(kind: type) -> str:
    return kind.__module__.partition(".")[0]
