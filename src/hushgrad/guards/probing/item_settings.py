"""What a loop sets for what makes its items: attributes of `collate_fn` and of the dataset, and what their code reads.

A mean of the batch that is written there after its step enters later items. Between the moment when an item is drawn
and that when the next one is going to be, nobody but the loop has a reason to write there.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import FunctionType, MethodType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushgrad.guards.probing.kept import Key, kept_by
from hushgrad.guards.probing.state_values import is_atom
from hushgrad.guards.probing.user_code import names_in
from hushgrad.torch_internals import unseen, version

MOST_PLACES = 1000
"""So many values of each are looked at, those nearest to it first."""

MOST_VALUES = 1 << 14
"""Larger tensors are told by torch's count of writes, larger arrays not."""

NEAR = 3
"""How many parts the place of an attribute of `collate_fn` or the dataset has."""

Settings = Mapping[Key, Any]


class ItemSettings:
    """Compares what makes the items of one session, from after the draw of one to before the draw of the next.

    What changes in a draw is no setting of the loop's: counters, caches and buffers of their own.

    Args:
        model: is not looked at here, wherever it is met.

    Attributes:
        have_changed: whether the loop has changed something.
    """

    def __init__(self, model: nn.Module | None) -> None:
        self._model = model
        self._before: Settings | None = None
        self._after: Settings | None = None
        self._of_draws: set[Key] = set()
        self.have_changed = False

    def before_draw(self, collate_fn: Callable[..., Any] | None, dataset: Any, *, is_wanted: bool) -> None:
        """The next item is going to be drawn; `is_wanted`: it will be looked at."""
        after, self._after, self._before = self._after, None, None
        if after is None and not is_wanted:
            return
        self._before = self._of(collate_fn, dataset)
        if after is not None:
            self.have_changed = self.have_changed or bool(_changed(after, self._before) - self._of_draws)

    def drawn(self, collate_fn: Callable[..., Any] | None, dataset: Any) -> None:
        """An item that is looked at was drawn."""
        self._after = self._of(collate_fn, dataset)
        if self._before is not None:
            self._of_draws |= _changed(self._before, self._after)

    def _of(self, collate_fn: Callable[..., Any] | None, dataset: Any) -> Settings:
        found: dict[Key, Any] = {}
        with unseen():
            for name, root, aside in (("collate_fn", collate_fn, dataset), ("dataset", dataset, None)):
                cells = kept_by(root, aside, self._model, places=MOST_PLACES).cells
                named = _named_by(root) if isinstance(root, MethodType) else None
                found.update(
                    ((name, *key), _told(value))
                    for key, value in cells
                    if named is None or key[1:2] != ("self",) or key[2:3] == () or key[2] in named
                )
        return found


def _changed(one: Settings, other: Settings) -> set[Key]:
    """Return the places that have other values; what is in one alone and deep was perhaps not reached in the other."""
    places = (one.keys() & other.keys()) | {place for place in one.keys() ^ other.keys() if len(place) <= NEAR}
    return {place for place in places if one.get(place) != other.get(place)}


def _told(value: Any) -> Any:
    """Return what tells whether a value has changed, and holds nothing of it."""
    if isinstance(value, Tensor) and not isinstance(value, nn.Parameter):
        if value.numel() > MOST_VALUES or value.layout is not torch.strided or value.is_meta:
            return tuple(value.shape), version(value)
        held = value.detach().cpu().resolve_conj().contiguous().view(-1).view(torch.uint8).numpy()
        return tuple(value.shape), str(value.dtype), hash(held.tobytes())
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufcSU":
        return value.shape, str(value.dtype), hash(value.tobytes()) if value.size <= MOST_VALUES else None
    is_long = isinstance(value, (str, bytes, tuple, frozenset))  # of numbers -1 and -2 have one hash
    return type(value).__name__, (hash(value) if is_long else hash(repr(value))) if is_atom(value) else None


def _named_by(method: MethodType) -> set[str]:
    """Return the attributes that a method names, or one that it calls by name: an object does much else."""
    names: set[str] = set()
    waiting: list[Any] = [method.__func__]
    while waiting:
        function = waiting.pop()
        if not isinstance(function, FunctionType):
            continue
        new = names_in(function.__code__)[1] - names
        names |= new
        waiting += [getattr(type(method.__self__), name, None) for name in new]
    return names
