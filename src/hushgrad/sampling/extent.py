"""How much a record holds, as the dataset gave it: the lengths of its tensors, arrays, texts and lists.

A collate function may pad, cut or pack; what an item shows of a record's length is what it left of it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sized
from dataclasses import fields, is_dataclass
from typing import Any

import numpy as np
from torch import Tensor

Place = tuple[Any, ...]

MOST_DEPTH = 6
"""How deep records are looked into."""

NUMBERS = (bool, int, float)
"""Have no length; a list that begins and ends with one is taken for a list of numbers, and not gone through."""


def lengths_of(record: Any, place: Place = ()) -> Iterator[tuple[Place, int]]:
    """Yield `(place, length)`: of tensors and arrays each axis, of texts and other containers how many they hold."""
    if isinstance(record, NUMBERS):
        return
    if isinstance(record, (Tensor, np.ndarray)):
        yield from (((*place, axis), length) for axis, length in enumerate(record.shape))
    elif isinstance(record, Mapping) and len(place) < MOST_DEPTH:
        for key, part in record.items():
            yield from lengths_of(part, (*place, key))
    elif isinstance(record, (tuple, list)) and len(place) < MOST_DEPTH:
        yield place, len(record)
        if not (record and isinstance(record[0], NUMBERS) and isinstance(record[-1], NUMBERS)):
            for key, part in enumerate(record):
                yield from lengths_of(part, (*place, key))
    elif isinstance(record, Sized):
        yield place, len(record)
    elif is_dataclass(record) and not isinstance(record, type) and len(place) < MOST_DEPTH:
        yield from lengths_of({entry.name: getattr(record, entry.name, None) for entry in fields(record)}, place)


def extent_of(record: Any) -> int:
    """Return the sum of all lengths in a record; 0 for one of a class that fails when it is asked."""
    try:
        return sum(length for _, length in lengths_of(record))
    except Exception:
        return 0
