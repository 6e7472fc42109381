"""Private batches where Lightning takes a loader, or a data module."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from typing import Any

from hushgrad.parallel.world import processes, rank
from hushgrad.sampling.records import Share
from hushgrad.sampling.torch_loader import DataLoaderReading, for_each_process, read_data_loader


class Batches:
    """What `fit` reads in the place of a DataLoader: `len()` logical batches, of each its first item."""

    def __init__(self, data_loader: Any, first_items: Callable[[], Iterator[Any]]) -> None:
        self._reading = read_data_loader(data_loader)
        self._first_items = first_items

    @property
    def reading(self) -> DataLoaderReading:
        """What the DataLoader says, once Lightning has begun its processes: its batch size is that of one of them."""
        return for_each_process(self._reading, Share(rank(), processes()))

    def __len__(self) -> int:
        return self.reading.steps

    def __iter__(self) -> Iterator[Any]:
        return self._first_items()


def with_private_batches(data_module: Any, batches: Callable[[Any], Batches]) -> Any:
    """Return a copy of a data module, of a new class of the same name, whose train loader goes through `batches`."""
    kind = type(data_module)

    def train_dataloader(self: Any) -> Batches:
        return batches(kind.train_dataloader(self))

    found = copy.copy(data_module)
    found.__class__ = type(
        kind.__name__, (kind,), {"train_dataloader": train_dataloader, "__qualname__": kind.__qualname__}
    )  # Lightning files its state under this name
    return found
