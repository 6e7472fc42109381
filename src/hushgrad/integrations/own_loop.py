"""What the integrations share whose loop the user writes: the plan of a run, and its logical batches, placed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from torch import nn
from torch.optim import Optimizer

from hushgrad.arguments import whole_number
from hushgrad.mechanism import DPSGD
from hushgrad.privacy import Privacy
from hushgrad.sampling.loader import PrivateLoader
from hushgrad.sampling.records import WHOLE, Share
from hushgrad.sampling.torch_loader import DataLoaderReading, for_each_process, read_data_loader
from hushgrad.session.session import Session


class Batches:
    """The logical batches of a pass, `len(batches)` of them, each to be iterated over once; on the device."""

    def __init__(self, loader: PrivateLoader, place: Callable[[Any], Any]) -> None:
        self._loader, self._place = loader, place

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[Iterator[Any]]:
        for batch in self._loader.logical_batches():
            yield (self._place(item) for item in batch)


def plan(privacy: Privacy, data_loader: Any, epochs: int, share: Share = WHOLE) -> tuple[DataLoaderReading, DPSGD]:
    """Return what a DataLoader says, and the mechanism of a run of so many epochs over it.

    With a `share`, its batch size is that of one process of several.
    """
    reading = for_each_process(read_data_loader(data_loader), share)
    steps = whole_number("epochs", epochs, minimum=1) * reading.steps
    return reading, privacy.mechanism(
        batch_size=reading.batch_size, population=reading.count, steps=steps, steps_per_pass=reading.steps
    )


def attach(
    model: nn.Module,
    optimizer: Optimizer,
    planned: tuple[DataLoaderReading, DPSGD],
    privacy: Privacy,
    max_physical_batch_size: int | None,
    place: Callable[[Any], Any],
) -> tuple[Session, Batches]:
    """Make a model and its optimizer private as planned; return the session and its batches."""
    reading, mechanism = planned
    session = privacy.privatize(model, optimizer, mechanism, privacy.ledger)
    try:
        loader = session.batches_of(reading, max_physical_batch_size=max_physical_batch_size)
    except BaseException:
        session.close()
        raise
    assert isinstance(loader, PrivateLoader)  # a stream was refused before, as it has no length
    return session, Batches(loader, place)
