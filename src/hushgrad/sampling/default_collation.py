"""Is torch's own collate function all torch's? What is registered with it, and what records are made of, may not be.

`default_collate` pads nothing and keeps nothing, but it runs functions that anybody may register for a type
(`default_collate_fn_map`), and of classes of somebody else's what stacks, copies or fills them.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from torch import Tensor
from torch.utils.data.dataloader import default_collate

from hushgrad.sampling.extent import MOST_DEPTH

PLAIN = (Tensor, np.ndarray, int, float, complex, bool, str, bytes, type(None))
_TORCHS: dict[str, Any] = default_collate.__globals__  # of its file, with the table of functions for types
CONTAINERS = (dict, list, tuple, collections.OrderedDict, collections.defaultdict)


def is_default(collate_fn: Callable[..., Any] | None) -> bool:
    """Return whether a collate function is torch's own."""
    return collate_fn is None or collate_fn is default_collate


def functions_of_others() -> list[Any]:
    """Return the functions that are registered for a type and are not those that torch has registered."""
    return [function for function in _TORCHS["default_collate_fn_map"].values() if not _is_torchs(function)]


def is_plain(record: Any, depth: int = 0) -> bool:
    """Return whether all parts of a record are collated by torch and NumPy alone, so that each keeps its row."""
    if type(record) in PLAIN or isinstance(record, np.generic):
        return True
    if depth >= MOST_DEPTH or not (type(record) in CONTAINERS or _is_named_tuple(record)):
        return False
    parts: Iterator[Any] = iter(record.values() if isinstance(record, dict) else record)
    return all(is_plain(part, depth + 1) for part in parts)


def _is_torchs(function: Any) -> bool:
    named = _TORCHS.get(getattr(function, "__name__", ""))
    return function is named and getattr(function, "__code__", None) is not None and _is_of(function)


def _is_of(function: Any) -> bool:
    return bool(function.__code__.co_filename == default_collate.__code__.co_filename)


def _is_named_tuple(record: Any) -> bool:
    """Whether it is a tuple with names for its parts that makes itself as tuples do."""
    kind = type(record)
    return isinstance(record, tuple) and kind.__bases__ == (tuple,) and hasattr(kind, "_fields")
