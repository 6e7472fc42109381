"""One pass over a stream: its records in its own order, in batches of one size, each record once."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from torch.utils.data import DataLoader, IterableDataset

from hushgrad.arguments import whole_number
from hushgrad.errors import DatasetError, InvalidArgumentError, ProtocolError, UnsupportedSamplerError
from hushgrad.sampling.counting_collate import CountingCollate
from hushgrad.sampling.default_collation import functions_of_others, is_default
from hushgrad.sampling.logical_batches import LogicalBatch
from hushgrad.sampling.records import BatchObserver, Cutting, PhysicalBatch, cut
from hushgrad.sampling.scheme import SamplingScheme
from hushgrad.sampling.stream_parts import require_places_kept
from hushgrad.sampling.torch_loader import LoadingOptions


@dataclass(frozen=True)
class StreamReading:
    """What was read from a DataLoader over a stream.

    Attributes:
        dataset: the iterable dataset.
        batch_size: records per logical batch, a public constant.
        rows: records per batch of the DataLoader.
        drop_last: whether a last batch of fewer records is left out.
        options: how records are collated.
    """

    dataset: Any
    batch_size: float
    rows: int
    drop_last: bool
    options: LoadingOptions

    def accumulated(self, accumulation: int) -> StreamReading:
        """Return the reading of a DataLoader whose batches are `accumulation` of these joined."""
        return replace(self, batch_size=self.rows * whole_number("accumulation", accumulation, minimum=1))


def is_stream(data_loader: Any) -> bool:
    """Return whether a DataLoader, or what was read of one, is over an iterable dataset."""
    if isinstance(data_loader, StreamReading):
        return True
    return isinstance(data_loader, DataLoader) and isinstance(data_loader.dataset, IterableDataset)


def read_stream(data_loader: Any) -> StreamReading:
    """Read a DataLoader over an iterable dataset, without reading data; what was read of one is returned as it is.

    Raises:
        InvalidArgumentError: a DataLoader with its own way of iterating.
        UnsupportedSamplerError: batching switched off, workers, or a stream whose known parts move records.
    """
    if isinstance(data_loader, StreamReading):
        return data_loader
    if type(data_loader).__iter__ is not DataLoader.__iter__:
        raise InvalidArgumentError(
            f"is a {type(data_loader).__name__} with its own __iter__, which would be left out",
            where="data_loader",
            cure="Pass torch's own DataLoader(stream, batch_size=...)",
        )
    if data_loader.batch_size is None:
        raise UnsupportedSamplerError(
            "it has batch_size=None (batching switched off), so one item is not a known number of records",
            where="data_loader",
            cure="Let the stream yield single records, and pass batch_size",
        )
    if data_loader.num_workers:
        raise UnsupportedSamplerError(
            "each worker may run the whole stream, so that a record would come once for each of them",
            where="data_loader",
            cure="Pass num_workers=0 with a stream",
        )
    require_places_kept(data_loader.dataset)
    return StreamReading(
        dataset=data_loader.dataset,
        batch_size=data_loader.batch_size,
        rows=data_loader.batch_size,
        drop_last=data_loader.drop_last,
        options=LoadingOptions(
            collate_fn=data_loader.collate_fn,
            pin_memory=data_loader.pin_memory,
            pin_memory_device=data_loader.pin_memory_device,
        ),
    )


class StreamLoader:
    """Iterates over the physical batches of a stream; it has no length.

    A logical batch is the next `batch_size` records; the last one of a pass may have fewer. Each iteration is a pass of
    its own, and charged as one: a stream that begins again hands out every record once more.

    Guarantee: every record that the stream yields is handed out exactly once, in the order of the stream.

    Attributes:
        dataset: the stream.
        sampling: a scheme of the caller's own disjoint batches.
        batch_size: the number of records in a logical batch.
        max_physical_batch_size: the most records in one item; None for all.
        constant_shapes: False: the last batch may have fewer rows.
        options: how records are collated.
        population: None: how many records there are is not declared.
    """

    constant_shapes = False
    population = None

    def __init__(
        self,
        reading: StreamReading,
        sampling: SamplingScheme,
        *,
        max_physical_batch_size: int | None = None,
        constant_shapes: bool = False,
        observer: BatchObserver | None = None,
    ) -> None:
        """Make a loader of what `read_stream` read.

        Raises:
            DatasetError: a scheme that draws records by index, or counts on when records come back.
            InvalidArgumentError: constant shapes, which would need other records as padding.
        """
        if not (sampling.takes_batches and sampling.counts_in == "passes"):
            raise DatasetError(
                f"it is a stream, whose records cannot be drawn by index, as {type(sampling).__name__} would",
                where="the dataset",
                cure="Pass poisson_sampling=False (or DisjointBatches()) to train on its own batches, each record once "
                "in a pass, charged without amplification; or load it into a map-style dataset",
            )
        if sampling.min_separation > 1:
            raise DatasetError(
                f"it is a stream, of which nobody knows how soon a record comes back, and {type(sampling).__name__} "
                f"says that it is {sampling.min_separation} steps at the earliest",
                where="the dataset",
                cure="Load it into a map-style dataset, with __len__ and __getitem__, or take DisjointBatches() and "
                "independent noise",
            )
        if constant_shapes:
            raise InvalidArgumentError(
                "constant_shapes pads batches with other records, which a stream cannot look up",
                cure="Leave it out, and give the DataLoader drop_last=True: every batch then has batch_size records",
            )
        rows = max_physical_batch_size
        self.max_physical_batch_size = (
            None if rows is None else whole_number("max_physical_batch_size", rows, minimum=1)
        )
        self.dataset, self.options = reading.dataset, reading.options
        self.sampling, self.batch_size = sampling, reading.batch_size
        self._records_per_batch, self._drops_last = int(reading.batch_size), reading.drop_last
        self._collate = CountingCollate(reading.options.collate_fn)
        self._keeps = not is_default(reading.options.collate_fn) or bool(functions_of_others())
        self._observer = observer
        self._next_step = self._next_pass = 0
        self._current_pass: object = None

    def __iter__(self) -> Iterator[Any]:
        """Yield the items of one pass.

        Raises:
            ProtocolError: another pass was begun since, or the observer says that the loop broke its protocol.
            BatchStructureError: `collate_fn` failed.
        """
        this_pass = object()
        self._before_draw(self._current_pass)
        self._current_pass = this_pass
        records, number = iter(self.dataset), None
        while True:
            batch = self._read(records, number or 0)
            if not batch or (self._drops_last and len(batch) < self._records_per_batch):
                return
            if number is None:  # a pass that hands out nothing is none
                number, self._next_pass = self._next_pass, self._next_pass + 1
            step, self._next_step = self._next_step, self._next_step + 1
            for part in cut(tuple(range(len(batch))), Cutting(self.max_physical_batch_size), step, number):
                yield self._handed_out(part, batch)
                self._before_draw(this_pass)

    def __len__(self) -> int:
        """Raise `TypeError`, as torch does for a stream: nobody knows how many batches there are."""
        raise TypeError("a stream has no length: how many batches it has is known once it has ended")

    def logical_batches(self) -> Iterator[LogicalBatch]:
        """Refuse: how many logical batches a stream has is not known before it ends."""
        raise ProtocolError(
            "the logical batches of a stream are not counted beforehand",
            cure="Iterate over the loader, and call optimizer.step() for every item: the last one of a logical batch "
            "alone updates",
        )

    def _before_draw(self, this_pass: object) -> None:
        if this_pass is not self._current_pass:
            raise ProtocolError(
                "another iteration over this loader was begun before this one ended",
                cure="Iterate over a private loader one pass at a time",
            )
        if self._observer is not None:
            self._observer.before_draw()

    def _read(self, records: Iterator[Any], number: int) -> list[Any]:
        try:
            return list(islice(records, self._records_per_batch))
        except BaseException:
            self._lose(PhysicalBatch((), 1, 0.0, self._next_step, number, first=True, last=True))
            raise

    def _handed_out(self, part: PhysicalBatch, batch: Sequence[Any]) -> Any:
        """Return the item of a part of a logical batch; the observer has been told of it."""
        records = [batch[index] for index in part.indices]
        # What cannot be read again is kept for the probe: a collate function of the caller's may change its records.
        kept = dict(zip(part.indices, _copied(records) if self._keeps else records, strict=True))
        try:
            _, extents, item = self._collated(records)
        except BaseException:
            self._lose(part)
            raise
        if self._observer is not None:
            self._observer.begin(replace(part, extents=extents, records=kept), item)
        return item

    def _collated(self, records: list[Any]) -> tuple[int, tuple[int, ...], Any]:
        if not self.options.pin_memory:
            return self._collate(records)
        one: DataLoader[Any] = DataLoader(
            [records],  # type: ignore[arg-type]
            batch_size=None,
            collate_fn=self._collate,
            pin_memory=True,
            pin_memory_device=self.options.pin_memory_device,
        )
        count, extents, item = next(iter(one))
        return count, tuple(extents), item

    def _lose(self, part: PhysicalBatch) -> None:
        if self._observer is not None:
            self._observer.lost(part)


def _copied(records: list[Any]) -> list[Any]:
    try:
        return deepcopy(records)
    except Exception:  # of a class that cannot be copied: what is left of it is looked at
        return records
