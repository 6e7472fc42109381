"""Nested values: the tensors in them, and the same structure with other parts."""

from __future__ import annotations

import copy
import enum
import inspect
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, is_dataclass, replace
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hushgrad.capture.public import PublicTensors
from hushgrad.guards.probing.holders import Slots, slots_of
from hushgrad.guards.probing.machinery import is_machinery
from hushgrad.guards.probing.user_code import is_users_class

Path = tuple[Any, ...]

DESCEND = object()
"""What a visitor returns for a value whose parts are to be visited."""

MOST_DEPTH = 12
"""How deep objects are opened; some refer back to what holds them."""


@dataclass(frozen=True, eq=False)
class HandedOn:
    """A tensor that is no part of the batch, and is handed to every run as it is."""

    tensor: Tensor


@dataclass(frozen=True, eq=False)
class Content:
    """What a part of a batch held as the batch was made.

    Attributes:
        cells: its values by their places in it, as copies.
        unread: what could not be looked into, in words.
    """

    cells: Mapping[Any, Any]
    unread: tuple[str, ...] = ()


CLOSED = (
    HandedOn,
    Content,
    nn.Module,
    type,
    ModuleType,
    enum.Enum,
    torch.Generator,
    np.ndarray,
    np.generic,
    str,
    bytes,
    PackedSequence,
)
"""What is taken whole, whatever attributes it has."""


def tensors_at(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield `(path, tensor)` for the tensors in nested containers, dataclasses and objects, in a fixed order."""
    if isinstance(value, Tensor):
        yield path, value
    elif len(path) <= MOST_DEPTH:
        for key, part in parts_of(value):
            if isinstance(part, Tensor):  # asked here, since this runs in every step
                yield (*path, key), part
            else:
                yield from tensors_at(part, (*path, key))


def with_tensors(value: Any, change: Callable[[Path, Tensor], Any]) -> Any:
    """Return the same nested structure with each tensor replaced by `change(path, tensor)`.

    Values of other types are shared with the original, and so are objects without any tensor.
    """

    def visit(path: Path, part: Any) -> Any:
        return with_its_attributes(part, change(path, part)) if isinstance(part, Tensor) else DESCEND

    return with_parts(value, visit)


def with_its_attributes(tensor: Tensor, other: Any) -> Any:
    """Return what takes a tensor's place, with the attributes that hang on the tensor in Python."""
    if isinstance(other, Tensor) and other is not tensor and tensor.__dict__ and not other.__dict__:
        other.__dict__.update(tensor.__dict__)
    return other


def with_parts(value: Any, visit: Callable[[Path, Any], Any], path: Path = ()) -> Any:
    """Return the same nested structure with each part replaced by `visit(path, part)`, unless that is `DESCEND`."""
    found = visit(path, value)
    if found is not DESCEND:
        return found
    given = parts_of(value) if len(path) <= MOST_DEPTH else []
    parts = {key: with_parts(part, visit, (*path, key)) for key, part in given}
    if not parts:
        return value
    if isinstance(value, Mapping):
        changed: Any = copy.copy(value)
        for key, part in parts.items():
            changed[key] = part
        return changed
    if isinstance(value, tuple) and type(value) is not tuple:
        return type(value)(*parts.values())  # a named tuple
    if isinstance(value, (tuple, list)):
        return type(value)(parts.values())
    if is_dataclass(value) and not isinstance(value, type):
        return replace(value, **parts)
    return _with_attributes(value, {key: parts[key] for key, part in given if parts[key] is not part})


def copied(value: Any, public: PublicTensors | None = None) -> Any:
    """Return the same nested structure with tensors and arrays of its own, which later writes do not reach.

    One for each tensor. Parameters are shared with the original: they change by the optimizer's step alone. What was
    declared `public` changes never, and is handed on.
    """
    own: dict[int, Any] = {}

    def visit(_: Path, part: Any) -> Any:
        if isinstance(part, nn.Parameter) or not isinstance(part, (Tensor, np.ndarray, PackedSequence)):
            return part if isinstance(part, nn.Parameter) else DESCEND
        if public and isinstance(part, Tensor) and public.holds(part):
            return HandedOn(part)
        if id(part) not in own:
            own[id(part)] = _copy_of(part)
        return own[id(part)]

    return with_parts(value, visit)


def _copy_of(part: Any) -> Any:
    if isinstance(part, Tensor):
        return with_its_attributes(part, part.detach().clone().requires_grad_(part.requires_grad))
    if isinstance(part, PackedSequence):
        return part._replace(data=part.data.detach().clone())
    return part.copy()


@contextmanager
def kept_values(value: Any) -> Iterator[None]:
    """Give the tensors and arrays in a nested structure the values back that they have now."""
    dense = [tensor for _, tensor in tensors_at(value) if tensor.layout is torch.strided]
    tensors = [(tensor, tensor.detach().clone()) for tensor in dense]
    arrays = [(array, array.copy()) for array in _arrays(value)]
    try:
        yield
    finally:
        with torch.no_grad():
            for tensor, values in tensors:
                if not torch.equal(tensor, values):
                    tensor.copy_(values)
        for array, copied_array in arrays:
            if array.flags.writeable:
                array[...] = copied_array


def _arrays(value: Any, depth: int = 0) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif not isinstance(value, Tensor) and depth <= MOST_DEPTH:
        for _, part in parts_of(value):
            yield from _arrays(part, depth + 1)


def places_of(value: Any, source: Any) -> dict[Path, Path]:
    """Return where in nested values `source` is, or a tensor that is a part of it: the path there, and that in it."""
    parts: dict[int, Path] = {id(source): ()}
    for path, tensor in tensors_at(source):
        parts.setdefault(id(tensor), path)
    found: dict[Path, Path] = {}

    def visit(path: Path, part: Any) -> Any:
        if id(part) not in parts:
            return DESCEND
        found[path] = parts[id(part)]
        return part

    with_parts(value, visit)
    return found


def detached(value: Any) -> Any:
    """Return the same nested structure with the tensors' values and without their graph."""
    return with_tensors(value, lambda _, tensor: tensor.detach())


def parts_of(value: Any) -> list[tuple[Any, Any]]:
    """Return the parts of a container, a dataclass or an object, by key or name; none of what is taken whole."""
    kind = type(value)
    if kind is tuple or kind is list:  # most are; this runs in every step
        return list(enumerate(value))
    if kind is dict:
        return list(value.items())
    if value is None or isinstance(value, (bool, int, float, complex, CLOSED)):
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and type(value) is not tuple and "_fields" not in vars(type(value)):
        return []  # a tuple of its own kind, such as torch.Size's relatives
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(entry.name, getattr(value, entry.name)) for entry in fields(value) if entry.init]
    if inspect.isroutine(value) or type(value).__module__ == "builtins":
        return []
    if is_machinery(value) and not is_users_class(type(value)):
        return []  # a logger, say, from which all others are reached
    return list(attributes_of(value).items())


def attributes_of(value: Any) -> dict[str, Any]:
    """Return what an object of any class keeps in its dictionary and its slots, by name."""
    own = getattr(value, "__dict__", None)
    return {**(own if isinstance(own, dict) else {}), **Slots(value, slots_of(value)).content()}


def _with_attributes(value: Any, changes: Mapping[str, Any]) -> Any:
    """Return a copy of an object of any class with some attributes changed; the object itself if there are none."""
    if not changes:
        return value
    other = copy.copy(value)
    for name, part in changes.items():
        object.__setattr__(other, name, part)
    return other
