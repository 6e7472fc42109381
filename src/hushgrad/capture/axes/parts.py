"""What a forward is given, taken apart: tensors by their paths, and lists with an entry for each example."""

from __future__ import annotations

import enum
import inspect
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from hushgrad.capture.axes.layout import Path, Role

CLOSED = (nn.Module, type, ModuleType, enum.Enum, torch.Generator, np.ndarray, np.generic, str, bytes, PackedSequence)
"""What is taken whole, whatever attributes it has."""

MOST_DEPTH = 12


def named_tensors(value: Any, path: Path = ()) -> Iterator[tuple[Path, Tensor]]:
    """Yield `(path, tensor)` for the tensors in nested containers, dataclasses and objects, as a graph's data are."""
    if isinstance(value, Tensor):
        yield path, value
    elif len(path) <= MOST_DEPTH:
        for key, part in _parts(value):
            yield from named_tensors(part, (*path, key))


def _parts(value: Any) -> list[tuple[Any, Any]]:
    if value is None or isinstance(value, (bool, int, float, complex, CLOSED)):
        return []
    if isinstance(value, Mapping):
        return list(value.items())
    if isinstance(value, (tuple, list)):
        return list(enumerate(value))
    if is_dataclass(value):
        return [(entry.name, getattr(value, entry.name)) for entry in fields(value) if entry.init]
    if inspect.isroutine(value) or type(value).__module__ == "builtins":
        return []
    return list(getattr(value, "__dict__", {}).items())


def lists_in(
    value: Any, size: int, known: Mapping[Path, Role], path: Path = (), outer: int = 2
) -> Iterator[tuple[Path, list[Any]]]:
    """Yield the lists with an entry for each of `size` examples, in which there are tensors.

    The `outer` containers say nothing by their lengths: 2 for `(args, kwargs)`. A list of as many tensors as there are
    examples, which may each hold all of them, is none unless it is known to hold entries: so are two states `(h, c)`.
    """
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield from lists_in(part, size, known, (*path, key), outer)
    elif type(value) in (tuple, list):
        if len(path) >= outer and len(value) == size and _holds_entries(value, size, known.get(path)):
            yield path, list(value)
        else:
            for key, part in enumerate(value):
                yield from lists_in(part, size, known, (*path, key), outer)


def _holds_entries(value: Any, size: int, expected: Role | None) -> bool:
    if not any(True for _ in named_tensors(value)):
        return False
    if expected is Role.ENTRIES:
        return True
    return not all(isinstance(entry, Tensor) and may_hold_all(entry, size) for entry in value)


def may_hold_all(tensor: Tensor, size: int) -> bool:
    """Return whether a tensor in a list may hold the whole batch: on its first axis, or as a state `[layers, B, h]`."""
    return size in tensor.shape[:2]


def tensors_at_top(result: Any) -> list[tuple[int, Tensor]]:
    """Return the tensors that an operator returned, with their indices among its outputs."""
    if isinstance(result, Tensor):
        return [(0, result)]
    if not isinstance(result, (tuple, list)):
        return []
    return [(index, part) for index, part in enumerate(result) if isinstance(part, Tensor)]
