"""Nested values: the tensors in them, and the same structure with other tensors."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields, is_dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

Path = tuple[Any, ...]


def tensors_at(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield `(path, tensor)` for the tensors in nested tuples, lists, mappings and dataclasses, in a fixed order."""
    if isinstance(value, Tensor):
        yield path, value
    else:
        for key, part in _parts(value):
            yield from tensors_at(part, (*path, key))


def with_tensors(value: Any, change: Callable[[Path, Tensor], Tensor], path: Path = ()) -> Any:
    """Return the same nested structure with each tensor replaced by `change(path, tensor)`.

    Values of other types are shared with the original.
    """
    if isinstance(value, Tensor):
        return change(path, value)
    parts = {key: with_tensors(part, change, (*path, key)) for key, part in _parts(value)}
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
    return replace(value, **parts)


def copied(value: Any) -> Any:
    """Return the same nested structure with tensors of its own, which later writes do not reach; one for each tensor.

    Parameters are shared with the original: they change by the optimizer's step alone.
    """
    own: dict[int, Tensor] = {}

    def copy_of(_: Path, tensor: Tensor) -> Tensor:
        if isinstance(tensor, nn.Parameter):
            return tensor
        if id(tensor) not in own:
            own[id(tensor)] = tensor.detach().clone().requires_grad_(tensor.requires_grad)
        return own[id(tensor)]

    return with_tensors(value, copy_of)


@contextmanager
def kept_values(value: Any) -> Iterator[None]:
    """Give the tensors and arrays in a nested structure the values back that they have now."""
    tensors = [(tensor, tensor.detach().clone()) for _, tensor in tensors_at(value)]
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


def _arrays(value: Any) -> Iterator[np.ndarray[Any, Any]]:
    if isinstance(value, np.ndarray):
        yield value
    elif not isinstance(value, Tensor):
        for _, part in _parts(value):
            yield from _arrays(part)


def detached(value: Any) -> Any:
    """Return the same nested structure with the tensors' values and without their graph."""
    return with_tensors(value, lambda _, tensor: tensor.detach())


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, tuple) and type(value) is not tuple and "_fields" not in vars(type(value)):
        return []  # a tuple of its own kind, such as a packed sequence or torch.Size's relatives
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_dataclass(value) and not isinstance(value, type):
        return [(entry.name, getattr(value, entry.name)) for entry in fields(value) if entry.init]
    return []
