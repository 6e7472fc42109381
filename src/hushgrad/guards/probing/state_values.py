"""Single values that a model keeps: which are compared as they are, how they are copied, written back and compared."""

from __future__ import annotations

import array
import ctypes
import datetime
import decimal
import enum
import fractions
import io
import math
import pathlib
import random
import re
import uuid
from collections.abc import Sequence
from functools import lru_cache
from types import CodeType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.torch_internals import unseen, version
from hushgrad.torch_sharding import local_part

PART = 1 << 17
"""How many values of a parameter are summed at a time, in double precision."""

Atom = (
    type(None), bool, int, float, complex, str, bytes, np.generic, fractions.Fraction, decimal.Decimal, enum.Enum,
    datetime.date, datetime.time, datetime.timedelta, datetime.tzinfo, uuid.UUID, range, slice, type(...), np.dtype,
    torch.dtype, torch.device, torch.layout, torch.memory_format, pathlib.PurePath, re.Pattern, CodeType,
)  # fmt: skip
"""What never changes and is compared by `==`."""

PLAIN = frozenset({type(None), bool, int, float, complex, str, bytes})
"""Most of them."""

RANDOM = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
C_DATA: type[Any] = ctypes.c_int.__mro__[-2]
"""What all values of `ctypes` are, also those that processes share."""

MUTABLE = (bytearray, array.array, io.StringIO, io.BytesIO, C_DATA)
ITERATORS: tuple[type[Any], ...] = (type(iter([])), type(iter(())), type(iter(range(0))))
"""Iterators whose place can be read and put back."""

LEAF = (Tensor, np.ndarray, *RANDOM, *MUTABLE, *ITERATORS)
"""What changes in its place and is copied."""


def is_atom(value: Any) -> bool:
    """Whether a value never changes, all through."""
    if type(value) in PLAIN:
        return True
    if isinstance(value, (tuple, frozenset)):
        return all(map(is_atom, value)) and (type(value) in (tuple, frozenset, torch.Size) or hasattr(value, "_fields"))
    return isinstance(value, Atom)


class Print(tuple[float, ...]):
    """The fingerprint of a parameter that is no part of the model: it is compared, and cannot be put back."""


class Version(int):
    """How often a large tensor was written to: it is too large to be copied, and cannot be put back."""


LARGE = 1 << 24
"""From how many values on a tensor that is no buffer is not copied."""


def saved_copy(value: Any, *, is_buffer: bool) -> Any:
    """Return what a value is compared with later, and put back from."""
    is_large = isinstance(value, Tensor) and value.numel() >= LARGE and not is_buffer
    return Version(version(value)) if is_large else copy_of(value)


def copy_of(value: Any) -> Any:
    """Return a copy of a value; a parameter's fingerprint, a generator's state, an iterator's place."""
    if type(value) in PLAIN:
        return value
    if isinstance(value, nn.Parameter):
        return Print(fingerprint(value))
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, (np.ndarray, bytearray, array.array)):
        return value[:] if isinstance(value, array.array) else value.copy()
    return _state(value)


def _state(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, np.random.RandomState):
        return _plain(value.get_state(legacy=False))
    if isinstance(value, np.random.Generator):
        return _plain(value.bit_generator.state)
    if isinstance(value, (io.StringIO, io.BytesIO)):
        return None if value.closed else (value.getvalue(), value.tell())
    if isinstance(value, C_DATA):
        return ctypes.string_at(ctypes.addressof(value), ctypes.sizeof(value))
    return value.__reduce__()[2:] if isinstance(value, ITERATORS) else value


def _plain(state: Any) -> Any:
    if isinstance(state, dict):
        return {name: _plain(part) for name, part in state.items()}
    return tuple(state.tolist()) if isinstance(state, np.ndarray) else state


def write(original: Any, copied: Any) -> None:
    """Give a value back what a copy of it holds."""
    if isinstance(copied, (Print, Version)):
        return
    if isinstance(original, Tensor):
        original.data.copy_(copied)  # not counted as a version: a graph may hold this tensor
    elif isinstance(original, torch.Generator):
        original.set_state(copied)
    elif isinstance(original, random.Random):
        original.setstate(copied)
    elif isinstance(original, np.random.RandomState):
        original.set_state(copied)
    elif isinstance(original, np.random.Generator):
        original.bit_generator.state = copied
    elif isinstance(original, np.ndarray):
        original[...] = copied
    elif isinstance(original, (bytearray, array.array)):
        original[:] = copied
    elif isinstance(original, C_DATA):
        ctypes.memmove(ctypes.addressof(original), copied, len(copied))
    elif isinstance(original, (io.StringIO, io.BytesIO)) and copied is not None:
        original.seek(0)
        original.truncate()
        original.write(copied[0])
        original.seek(copied[1])
    elif isinstance(original, ITERATORS) and copied:
        original.__setstate__(copied[0])


def agree(value: Any, copied: Any) -> bool:
    """Return whether two values of state are equal and of one type, NaN being equal to itself."""
    if type(value) in PLAIN:
        return type(value) is type(copied) and bool(value == copied or (value != value and copied != copied))
    if isinstance(copied, Version) and isinstance(value, Tensor):
        return version(value) == copied
    if isinstance(copied, Print) and isinstance(value, nn.Parameter):
        return fingerprint(value) == tuple(copied)
    if isinstance(value, LEAF) and not isinstance(value, (Tensor, np.ndarray)):
        value = _state(value)
    if isinstance(value, Tensor) or isinstance(copied, Tensor):
        if not (isinstance(value, Tensor) and isinstance(copied, Tensor)):
            return False
        if value.shape != copied.shape or value.dtype != copied.dtype or value.device != copied.device:
            return False
        return bool(torch.equal(value, copied) or ((value == copied) | ((value != value) & (copied != copied))).all())
    if isinstance(value, np.ndarray) or isinstance(copied, np.ndarray):
        return (
            isinstance(value, np.ndarray)
            and isinstance(copied, np.ndarray)
            and value.dtype == copied.dtype
            and bool(np.array_equal(value, copied, equal_nan=value.dtype.kind in "fc"))
        )
    if type(value) is not type(copied):
        return False
    if isinstance(value, (tuple, list)):
        return len(value) == len(copied) and all(map(agree, value, copied))
    same = value == copied
    return bool(same or (value != value and copied != copied))


def are_alike(one: Any, other: Any) -> bool:
    """Return whether two containers hold equal values, all through."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(are_alike(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)) and not is_atom(one):
        return len(one) == len(other) and all(map(are_alike, one, other))
    return one is other or ((is_atom(one) or isinstance(one, LEAF)) and agree(one, copy_of(other)))


@lru_cache(maxsize=8)
def _weights(device: torch.device) -> Tensor:
    """Return fixed random weights: a sum with them changes when values change places."""
    return torch.rand(PART, generator=torch.Generator().manual_seed(1), dtype=torch.float64).add_(0.5).to(device)


@torch.no_grad()
def fingerprint(parameter: Tensor) -> tuple[float, ...]:
    """Two sums that change when values change, or change places, and how many are not finite.

    A copy of every parameter would double the memory of a model.
    """
    parameter = local_part(parameter)
    if parameter.is_meta or isinstance(parameter, nn.UninitializedParameter) or parameter.numel() == 0:
        return ()
    with unseen():  # a mode that writes down the loop's calls need not look at these
        flat = parameter.detach().reshape(-1)
        if flat.is_complex():
            flat = torch.view_as_real(flat.resolve_conj()).reshape(-1)
        sums = [0.0, 0.0, 0.0]
        parts: list[Tensor] = flat.split(PART)  # type: ignore[no-untyped-call]
        weights = _weights(flat.device)
        for number, part in enumerate(parts, 1):
            values, some = part.double(), weights[: part.numel()]
            found = number * float(values.dot(some)), float(values.dot(values)), 0.0
            if not all(map(math.isfinite, found)):
                values, unusual = values.nan_to_num(0.0, 0.0, 0.0), values.isfinite().logical_not()
                found = number * float(values.dot(some)), float(values.dot(values)), float(unusual.sum())
            sums = [total + more for total, more in zip(sums, found, strict=True)]
    return tuple(sums)


# What differs from run to run by the time or by addresses, and not by the data -------------------------------------

SPREAD = 100.0
"""How many times farther than from run to run of one batch such a number may be after another batch."""

_NUMBER = re.compile(r"0[xX][0-9a-fA-F]+|\d+(?:\.\d+)?(?:[eE][+-]?\d+)?")


def differs_by_itself(samples: Sequence[Any], changed: Any) -> bool:
    """Return whether `changed` differs from `samples` as they differ among themselves: clocks, durations, addresses.

    `samples` come from runs on one and the same batch. Whatever is the same in all of them has to be the same in
    `changed`; texts are compared word by word, and containers part by part.
    """
    first = samples[0]
    if all(agree(first, other) for other in samples[1:]):
        return agree(first, changed)
    everything = [*samples, changed]
    if len({type(value) for value in everything}) > 1:
        return False
    if isinstance(first, (str, tuple, list)):
        parts = [_words(value) if isinstance(value, str) else list(value) for value in everything]
        if len({len(part) for part in parts}) > 1:
            return False
        return all(differs_by_itself(column[:-1], column[-1]) for column in zip(*parts, strict=True))
    if isinstance(first, uuid.UUID):
        return True
    numbers = [_number(value) for value in everything]
    if any(number is None for number in numbers):
        return False
    *same, other = [number for number in numbers if number is not None]
    low, high = min(same), max(same)
    return low - SPREAD * (high - low) <= other <= high + SPREAD * (high - low)


def _words(text: str) -> list[Any]:
    found: list[Any] = _NUMBER.split(text)
    found += [int(word, 16) if word[:2].lower() == "0x" else float(word) for word in _NUMBER.findall(text)]
    return found


def _number(value: Any) -> float | None:
    if isinstance(value, datetime.datetime):
        return value.timestamp()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, Tensor) and value.numel() == 1 and not value.is_complex():
        return float(value)
    is_real = isinstance(value, (int, float, np.integer, np.floating)) and not isinstance(value, bool)
    return float(value) if is_real and math.isfinite(value) else None
