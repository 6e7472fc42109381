"""Streams: records that decide by their values in which batches others are, or that come several times in a pass."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator
from typing import Any

import torch
from silent_programs import REPLACED, Kept, Kind, Measured, Program
from torch import Tensor, nn
from torch.utils.data import ChainDataset, DataLoader, IterableDataset
from torch.utils.data.datapipes.iter import Filter, IterableWrapper, Mapper, Shuffler, UnBatcher

from hushgrad import PrivacyEngine

RECORDS = list(torch.randn(20, 4, generator=torch.Generator().manual_seed(1)))
OTHERS = [*RECORDS[:2], torch.full((4,), -9.0), *RECORDS[3:]]
CLIP, EACH_ONCE = 0.05, "each record once"


class Stream(IterableDataset[Any]):
    """What a function yields of the records."""

    def __init__(self, made: Callable[[], Iterator[Tensor]]) -> None:
        self.made = made

    def __iter__(self) -> Iterator[Tensor]:
        return self.made()


class Held(IterableDataset[Any]):
    """An iterator that is kept."""

    def __init__(self, kept: Any) -> None:
        self.kept = kept

    def __iter__(self) -> Iterator[Tensor]:
        return iter(self.kept)


def is_wanted(record: Tensor) -> bool:
    return float(record[0]) > -5


def halved(record: Tensor) -> Tensor:
    return record / 2


def wanted(records: list[Tensor]) -> Iterator[Tensor]:
    for record in records:
        if is_wanted(record):
            yield record


def packed(records: list[Tensor]) -> Iterator[Tensor]:
    """Two small records become one."""
    held: list[Tensor] = []
    for record in records:
        held.append(record)
        if len(held) == 2 or not is_wanted(record):
            yield torch.stack(held).sum(0)
            held = []


def twice(records: list[Tensor]) -> Iterator[Tensor]:
    for record in records:
        yield record
        if not is_wanted(record):
            yield from [record] * 5


def by_size(records: list[Tensor]) -> Iterator[Tensor]:
    return iter(sorted(records, key=lambda record: float(record[1])))


def batches(records: list[Tensor]) -> Iterator[list[Tensor]]:
    yield from ([record] if is_wanted(record) else [record] * 4 for record in records)


def passes_of(make: Callable[[list[Tensor]], Any], settings: dict[str, Any], records: list[Tensor]) -> Any:
    """Return the clipped sums of a pass, and the conditions that were stated."""
    torch.manual_seed(0)
    model, engine = nn.Linear(4, 3), PrivacyEngine()
    optimizer = Kept(model.parameters(), lr=1e-9)
    _, _, loader = engine.make_private(
        module=model,
        optimizer=optimizer,
        data_loader=DataLoader(make(records), batch_size=4, **settings),
        noise_multiplier=0.0,
        max_grad_norm=CLIP,
        poisson_sampling=False,
        loss_reduction="sum",
    )
    sums = []
    for x in loader:
        engine.session.backward((model(x) - 1).square().sum(1))
        optimizer.step()
        sums.append(optimizer.seen)
    names = frozenset(condition.name for condition in engine.session.guarantee(1e-5, "rdp").conditions)
    engine.session.close()
    return sums, names


def moved(one: list[Tensor], two: list[Tensor]) -> float:
    """How far one record moves all sums of a pass together, which are charged as one release."""
    pairs = itertools.zip_longest(one, two, fillvalue=torch.zeros_like(one[0]))
    return math.sqrt(sum(float((a.double() - b.double()).square().sum()) for a, b in pairs)) / CLIP


def stream(
    name: str, make: Callable[[list[Tensor]], Any], *trust: str, is_clean: bool = False, **options: Any
) -> Program:
    def measure(way: str) -> Measured:
        first, conditions = passes_of(make, options, RECORDS)
        second, _ = passes_of(make, options, OTHERS)
        return Measured(moved(first, second), conditions)

    return Program(name, measure, ways=("session",), limit=REPLACED, trust=trust, is_clean=is_clean, told=(EACH_ONCE,))


def of(function: Callable[[list[Tensor]], Iterator[Any]]) -> Callable[[list[Tensor]], Any]:
    return lambda records: Stream(lambda: function(records))


PROGRAMS = (
    stream("a filter of torch", lambda records: Filter(IterableWrapper(records), is_wanted)),
    stream("a filter under a map and a shuffle",
           lambda records: Mapper(Shuffler(Filter(IterableWrapper(records), is_wanted)), halved)),
    stream("a filter of Python", lambda records: Held(filter(is_wanted, records))),
    stream("a filter in a chain", lambda records: ChainDataset([of(iter)(records), Held(filter(is_wanted, records))])),
    stream("until a record comes", lambda records: Held(itertools.takewhile(is_wanted, records))),
    stream("one record for several", lambda records: UnBatcher(of(batches)(records))),
    stream("two workers", of(iter), num_workers=2),
    stream("an if in a generator", of(wanted), EACH_ONCE),
    stream("packing in a generator", of(packed), EACH_ONCE),
    stream("a record that comes again", of(twice), EACH_ONCE),
    stream("sorted by value", of(by_size), EACH_ONCE),
    stream("in its own order", of(iter), is_clean=True),
    stream("each mapped to one", lambda records: Mapper(IterableWrapper(records), halved), is_clean=True),
    stream("shuffled by a buffer", lambda records: Shuffler(IterableWrapper(records)).set_seed(3), is_clean=True),
    stream("a chain of two",
           lambda records: ChainDataset([of(iter)(records[:7]), of(iter)(records[7:])]), is_clean=True),
    stream("without the last batch", lambda records: of(iter)(records[:18]), is_clean=True, drop_last=True),
    stream("with a short last batch", lambda records: of(iter)(records[:18]), is_clean=True),
    stream("collated by the caller", of(iter), is_clean=True, collate_fn=torch.stack),
)  # fmt: skip

KIND = Kind(
    "streams",
    "the classes that a stream is made of: filters, packing, groups, repetition, by name; workers",
    "set-up",
    "what a stream's own code does: `each record once`",
    PROGRAMS,
)
