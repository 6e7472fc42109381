"""Settings: values at places, told from others without holding them, and which places have other ones now."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.kept import Key
from hushgrad.guards.probing.state_values import is_atom
from hushgrad.torch_internals import version
from hushgrad.torch_sharding import local_part

MOST_PLACES = 1000
"""So many values of each thing are looked at, those nearest to it first."""

MOST_VALUES = 1 << 14
"""Larger tensors and arrays are told by which they are, by torch's count of writes, and by so many of their values."""

NEAR = 3
"""How many parts the place of an attribute has."""

Settings = Mapping[Key, Any]


def changed(one: Settings, other: Settings) -> set[Key]:
    """Return the places that have other values; what is in one alone and deep was perhaps not reached in the other."""
    places = (one.keys() & other.keys()) | {place for place in one.keys() ^ other.keys() if len(place) <= NEAR}
    return {place for place in places if one.get(place) != other.get(place)}


def told(value: Any) -> Any:
    """Return what tells whether a value has changed, and holds nothing of it."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        return _told_of_tensor(value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        which = None if value.size <= MOST_VALUES else id(value)
        return value.shape, str(value.dtype), hash(_some(value.reshape(-1)).tobytes()), which
    is_long = isinstance(value, (str, bytes, tuple, frozenset))  # of numbers -1 and -2 have one hash
    return type(value).__name__, (hash(value) if is_long else hash(repr(value))) if is_atom(value) else None


def _told_of_tensor(tensor: Tensor) -> Any:
    value = local_part(tensor)
    if value.is_nested:
        return "nested", version(value)
    is_large = value.numel() > MOST_VALUES
    which = (version(value), id(value)) if is_large else None
    if value.is_meta or value.layout is not torch.strided or (is_large and not value.is_contiguous()):
        return tuple(value.shape), version(value), which
    held = _some(value.detach().reshape(-1)).cpu().resolve_conj().resolve_neg().contiguous().view(torch.uint8).numpy()
    return tuple(value.shape), str(value.dtype), hash(held.tobytes()), which


def _some(flat: Any) -> Any:
    return flat[:: -(-len(flat) // MOST_VALUES) or 1]
