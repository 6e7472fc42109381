"""The private loader in the form in which a Trainer reads one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from hushgrad.sampling.loader import PrivateLoader


class LogicalBatches:
    """A private loader as a Trainer reads one: `len()` logical batches, each drawn in the step that is made of it."""

    def __init__(self, loader: PrivateLoader, is_over: Callable[[], bool]) -> None:
        self._loader, self._is_over = loader, is_over
        self.dataset = loader.dataset

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Any]:
        return iter(()) if self._is_over() else self._loader.logical_batches()
