"""Ordinary gradients of huge tables in sparse form, so that no run of the probe forms one as large as the table."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode

_PLACES: dict[Callable[..., Any], int] = {F.embedding: 6, F.embedding_bag: 7}
"""Where the argument `sparse` stands."""

_MODE_OF_BAGS = 6


class SparseLookups(TorchFunctionMode):
    """Runs lookups in some tables with `sparse=True`: their outputs are the same, and their gradients sparse.

    The largest value of each bag has no sparse gradient in torch, and `table[ids]` neither: those stay dense.
    """

    def __init__(self, tables: Iterable[Tensor]) -> None:
        super().__init__()
        self._tables = list(tables)  # while they live no other tensor can have their ids
        self._ids = {id(table) for table in self._tables}

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Run one call."""
        kwargs = kwargs or {}
        place = _PLACES.get(func)
        if place is None or id(args[1] if len(args) > 1 else kwargs.get("weight")) not in self._ids:
            return func(*args, **kwargs)
        if func is F.embedding_bag and _mode_of(args, kwargs) == "max":
            return func(*args, **kwargs)
        if len(args) > place:
            return func(*args[:place], True, *args[place + 1 :], **kwargs)
        return func(*args, **{**kwargs, "sparse": True})


def _mode_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    return args[_MODE_OF_BAGS] if len(args) > _MODE_OF_BAGS else kwargs.get("mode", "mean")
