"""The loader: draws logical batches, cuts them into physical ones and hands out their records."""

from __future__ import annotations

import math
import operator
import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from hushgrad.accounting.ledger.contract import noun_of
from hushgrad.arguments import positive_number, whole_number
from hushgrad.errors import (
    BatchStructureError,
    ContractChangedError,
    DuplicateRecordError,
    InvalidArgumentError,
    ProtocolError,
    UnsupportedSamplerError,
)
from hushgrad.randomness import Address, KeyStream
from hushgrad.sampling.counting_collate import CountingCollate
from hushgrad.sampling.logical_batches import LogicalBatch, logical_batches
from hushgrad.sampling.membership import Membership
from hushgrad.sampling.ownership import Ownership, UserIds
from hushgrad.sampling.poisson import uniform_indices
from hushgrad.sampling.records import WHOLE, BatchObserver, Cutting, PhysicalBatch, Share, cut
from hushgrad.sampling.repeats import require_each_once
from hushgrad.sampling.scheme import Batches, SamplingScheme, require_scheme
from hushgrad.sampling.torch_loader import LoadingOptions, dataset_length, in_users, read_data_loader, require_share


class PrivateLoader:
    """Iterates over physical batches; `len` is the number of logical batches in a pass.

    The draw is the library's own, made in this process; the dataset, its workers and `collate_fn` are the caller's,
    and an item is what `collate_fn` returned, untouched. An empty draw is handed out as one real record, drawn
    uniformly, with weight 0, because many models cannot run on no rows. A logical batch is drawn once: what workers
    fetched ahead of a `break` is dropped, and the next pass draws afresh.

    With `constant_shapes` every item has `max_physical_batch_size` rows: the records drawn, and after them others,
    drawn uniformly, as padding of weight 0. Under Poisson sampling the number of items of a logical batch still follows
    the draw; under truncated Poisson sampling it is constant, too. What an item holds is secret either way.

    The loader counts the records that reach `collate_fn`. Whether the collated item has one row for each of them
    cannot be told from its tensors (time may come first, sequences may be packed), so it is checked where rows are
    known: a session compares the number of losses with `PhysicalBatch.size`.

    Guarantee: every drawn record is handed out exactly once in its logical batch.
    Guarantee: where whole users are drawn, all records of a user are in one item, and a draw of a part of them is never
    handed out.
    Guarantee: a draw that holds a record twice, or more records than the scheme's largest batch, is never handed out.
    Guarantee: the draws depend on the stream alone, never on the seeds of torch, NumPy or Python.

    Attributes:
        dataset: the dataset that records are read from.
        sampling: how records are drawn.
        batch_size: the expected number of records in a logical batch; of users, where whole users are drawn.
        max_physical_batch_size: the most records in one item; None for all.
        constant_shapes: whether every item has exactly `max_physical_batch_size` rows.
        options: how records are fetched.
    """

    def __init__(
        self,
        dataset: Any,
        sampling: SamplingScheme,
        *,
        steps_per_pass: int,
        stream: KeyStream,
        batch_size: float | None = None,
        batches: Batches | None = None,
        options: LoadingOptions | None = None,
        max_physical_batch_size: int | None = None,
        constant_shapes: bool = False,
        observer: BatchObserver | None = None,
        share: Share = WHOLE,
        agree: Callable[[Batches], Batches] | None = None,
    ) -> None:
        """Make a loader over a dataset, for loops without a DataLoader of their own.

        Args:
            dataset: map-style, with `__len__` and `__getitem__`.
            sampling: how records are drawn; `DisjointBatches()` together with `batches`.
            steps_per_pass: logical batches in one pass.
            stream: bits for this loader alone; two loaders with one stream would draw the same records.
            batch_size: the expected size of a logical batch; by default what the scheme expects. Required with
                `batches`.
            batches: for a scheme that takes them, the caller's batches of indices, iterated anew in every pass.
            options: workers, pinning and `collate_fn`, in torch's words.
            max_physical_batch_size: the most records in one item; None for all.
            constant_shapes: whether every item has exactly that many rows, with padding of weight 0; None for it is
                then the scheme's largest batch.
            observer: told before each read and of each item.
            share: which part of each logical batch this process takes, where several draw under one stream.
            agree: given the caller's `batches`, returns those that all of these processes take.

        Raises:
            DatasetError: an iterable or empty dataset, or one without a length.
            DuplicateRecordError: the dataset has a record at several indices, by `Subset` or `ConcatDataset`.
            InvalidArgumentError: an argument out of range, `batches` for a scheme that draws its own and the reverse,
                a scheme for another number of records, or constant shapes of unknown size.
        """
        self.dataset = dataset
        self.sampling = require_scheme(sampling)
        cutting = _cutting(self.sampling, max_physical_batch_size, constant_shapes, share)
        self.max_physical_batch_size, self.constant_shapes = cutting.max_rows, cutting.constant_rows
        self._count = dataset_length(dataset)
        self._membership = Membership(dataset)
        self._steps_per_pass = whole_number("steps_per_pass", steps_per_pass, minimum=1)
        _require_whole_pass(sampling, self._steps_per_pass)
        self._observer = observer
        if (batches is not None) != sampling.takes_batches:
            raise InvalidArgumentError(
                f"{type(sampling).__name__} {'needs' if sampling.takes_batches else 'draws its own'} batches",
                cure="Give batches with a scheme that takes the caller's own (DisjointBatches), and with no other",
            )
        expected = sampling.expected_batch_size(self._count) if batch_size is None else batch_size
        if expected is None:
            raise InvalidArgumentError(f"{type(sampling).__name__} needs batch_size", cure="Give it, a public constant")
        self.batch_size = positive_number("batch_size", expected)
        if batches is not None and agree is not None:
            batches = agree(batches)
        ownership = require_whole_users(sampling, cutting.max_rows, share)
        require_each_once(dataset, None if ownership is None else ownership.ids)
        sampler = sampling.sampler(self._count, stream.fork("sampling"), batches)
        one_pass = partial(sampler.one_pass, self._steps_per_pass)
        self._planner = _Planner(
            one_pass,
            cutting,
            self._count,
            sampling.largest_batch,
            stream.fork("padding"),
            _most_in_a_pass(sampling),
            share,
            whole_number("min_separation", sampling.min_separation, minimum=1),
            None if ownership is None else ownership.ids,
        )
        self.options = options or LoadingOptions()
        self._items = _torch_loader(dataset, self._planner, self.options)
        self._current_pass: object = None
        self._handed_out: int | None = None  # logical batches of the pass in work; None before the first
        self._reader: dict[str, int] = {}  # the thread that reads now

    @classmethod
    def from_data_loader(
        cls,
        data_loader: Any,
        sampling: SamplingScheme,
        *,
        stream: KeyStream,
        max_physical_batch_size: int | None = None,
        constant_shapes: bool = False,
        observer: BatchObserver | None = None,
        share: Share = WHOLE,
        agree: Callable[[Batches], Batches] | None = None,
    ) -> PrivateLoader:
        """Make a loader with the dataset, batch size, `collate_fn` and workers of a torch DataLoader.

        The scheme's draw replaces the DataLoader's, with as many steps in a pass as the DataLoader has batches. A
        scheme that takes the caller's own batches gets the DataLoader's, and one that allocates records to the steps of
        a pass must have as many of them.

        Raises what `read_data_loader` raises, before data is read, and `InvalidArgumentError` for a scheme that expects
        batches of another size than the DataLoader's.
        """
        reading = in_users(read_data_loader(data_loader), sampling)
        require_share(reading, share)
        if require_scheme(sampling).allocation is None:
            batch_size = reading.batch_size
            require_expected_size(sampling, batch_size, reading.count)
        else:  # of N records in a whole number of batches, the DataLoader's last one may be smaller
            _require_whole_pass(sampling, reading.steps)
            batch_size = positive_number("expected_batch_size", sampling.expected_batch_size(reading.count))
        if reading.share is not None and sampling.takes_batches:
            raise UnsupportedSamplerError(
                "DistributedSampler gives each process batches of its own, and disjoint batches are those of all",
                cure="Leave the sampler out: pass DataLoader(dataset, batch_size=..., shuffle=True) with the batch "
                "size of all processes together",
            )
        return cls(
            reading.dataset,
            sampling,
            steps_per_pass=reading.steps,
            stream=stream,
            batch_size=batch_size,
            batches=reading.batches if sampling.takes_batches else None,
            options=reading.options,
            max_physical_batch_size=max_physical_batch_size,
            constant_shapes=constant_shapes,
            observer=observer,
            share=share,
            agree=agree,
        )

    @property
    def population(self) -> int:
        """N, the number of records of the dataset (of users, where whole users are drawn), declared public."""
        return whole_number("units_in", self.sampling.units_in(self._count), minimum=1)

    def __len__(self) -> int:
        return self._steps_per_pass

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {len(self)} logical batches a pass, {self.sampling.describe()}>"

    def __iter__(self) -> Iterator[Any]:
        """Yield the items of one pass.

        Raises:
            ProtocolError: another pass was begun since, or the observer says that the loop broke its protocol.
            ContractChangedError: the length of the dataset is not what it was, or the indices of a `Subset` are not.
            BatchStructureError: `collate_fn` failed, or did not get the records that were drawn.
            DuplicateRecordError: the caller's own batches hold a record twice in this pass.
        """
        for item, _ in self._one_pass():
            yield item

    def logical_batches(self) -> Iterator[LogicalBatch]:
        """Yield the `len(loader)` logical batches of one pass; each draws its items when it is iterated over.

        The loop that goes with it takes one step for each of them, however many items it came in::

            for logical_batch in loader.logical_batches():
                for item in logical_batch:
                    session.backward(losses_of(item))
                    session.end_item()
                optimizer.step()

        Raises what iterating over the loader raises, and `ProtocolError` for a logical batch out of turn.
        """
        return logical_batches(self._one_pass(), len(self))

    def _one_pass(self) -> Iterator[tuple[Any, PhysicalBatch]]:
        this_pass = object()
        with self._one_reader():
            self._before_draw()
            self._current_pass = this_pass
            self._require_same_records(whole=True)
            if self._handed_out not in (None, self._steps_per_pass):
                self._planner.break_off()
            self._handed_out = 0
            planned = self._planner.new_pass()
            items = iter(self._items)
            found = self._read(items, planned)
        while found is not None:
            yield found
            with self._one_reader():
                if this_pass is not self._current_pass:
                    raise ProtocolError(
                        "another iteration over this loader was begun before this one ended",
                        cure="Iterate over a private loader one pass at a time",
                    )
                self._before_draw()
                self._require_same_records(whole=self._handed_out == self._steps_per_pass)
                found = self._read(items, planned)

    @contextmanager
    def _one_reader(self) -> Iterator[None]:
        """Refuse a second thread while one reads: who gets which records would be left to chance."""
        this = threading.get_ident()
        # One step, between whose halves no interrupt can come. What an interrupt leaves behind is its own thread's.
        if self._reader.setdefault("thread", this) != this:
            raise ProtocolError(
                "two threads read from this loader at once",
                cure="Read a private loader in one thread, that of the training loop; its DataLoader may have workers "
                "(num_workers)",
            )
        try:
            yield
        finally:
            self._reader.clear()

    def _read(self, items: Iterator[Any], planned: deque[PhysicalBatch]) -> tuple[Any, PhysicalBatch] | None:
        """Return the next item and what it is, which the observer has been told of; None at the end of the pass."""
        try:
            records, extents, item = next(items)
        except StopIteration:
            return None
        except BaseException:
            self._lose(planned)
            raise
        batch = replace(planned.popleft(), extents=tuple(extents))
        if records != batch.size:
            self._lose([batch])
            raise BatchStructureError(
                "collate_fn got another number of records than were drawn",
                cure="Return one record for each index from the dataset's __getitems__",
            )
        if self._observer is not None:
            self._observer.begin(batch, item)
        self._handed_out = (self._handed_out or 0) + batch.last
        return item, batch

    def _lose(self, planned: Sequence[PhysicalBatch]) -> None:
        """Tell the observer of the batch that was to come; those behind it were fetched ahead, and nobody saw them."""
        if self._observer is not None and planned:
            self._observer.lost(planned[0])

    def _before_draw(self) -> None:
        if self._observer is not None:
            self._observer.before_draw()

    def _require_same_records(self, *, whole: bool) -> None:
        count = len(self.dataset)
        if count != self._count:
            raise ContractChangedError(
                f"the dataset had {self._count} records when the loader was made and has {count} now; the sampling "
                f"rate and the charge rest on that length",
                cure="Make the model private again, over the dataset as it is now",
            )
        self._membership.require_same(whole=whole)


class _Planner:
    """The batch sampler of the torch loader inside: gives it indices and notes what they are, in the same order."""

    def __init__(
        self,
        one_pass: Callable[[int], Iterator[tuple[int, ...]]],
        cutting: Cutting,
        count: int,
        most: int | None,
        padding: KeyStream,
        most_in_a_pass: int | None,
        share: Share,
        separation: int,
        owners: UserIds | None = None,
    ) -> None:
        self._owners = owners
        self._one_pass = one_pass
        self._cutting = cutting
        self._count = count
        self._most = count if most is None else whole_number("largest_batch", most, minimum=1)
        self._padding = padding
        self._most_in_a_pass = most_in_a_pass
        self._share = share
        self._separation = separation
        self._last_steps = np.full(count if separation > 1 else 0, -separation, dtype=np.int64)
        self._planned: deque[PhysicalBatch] = deque()
        self._next_step = 0
        self._next_pass = 0

    def new_pass(self) -> deque[PhysicalBatch]:
        """Return the queue that the batches of the coming pass will be noted in."""
        self._planned = deque()
        return self._planned

    def break_off(self) -> None:
        """Take note that the last pass did not end: the next one does not follow it, whatever was fetched ahead."""
        self._next_step += 1
        self._last_steps[:] = -self._separation

    def __iter__(self) -> Iterator[list[int]]:
        # The torch loader may make an iterator that it never starts; so nothing is counted before the first draw.
        planned, pass_index = self._planned, self._next_pass
        self._next_pass += 1
        limit = self._most_in_a_pass
        seen = np.zeros(0 if limit is None else self._count, dtype=np.min_scalar_type(limit or 0))
        for drawn in self._one_pass(self._next_step):
            step = self._next_step
            self._next_step += 1
            indices = self._chargeable(drawn)
            if limit is not None:
                _require_new(indices, seen, limit)
            self._require_separation(indices, step)
            indices, owners = self._by_user(indices)
            for item, batch in enumerate(cut(indices, self._cutting, step, pass_index, self._share, owners)):
                planned.append(batch)
                missing = batch.size - len(batch.indices)
                yield [*batch.indices, *self._draw_padding(step, item, missing)]

    def _require_separation(self, indices: tuple[int, ...], step: int) -> None:
        """Refuse a record that comes back sooner than the scheme says: its steps would share noise."""
        if self._separation == 1:
            return
        chosen = np.fromiter(indices, np.int64, len(indices))
        if len(indices) and int(self._last_steps[chosen].max()) > step - self._separation:
            raise DuplicateRecordError(
                f"the sampler drew a record less than {self._separation} steps after it was drawn last, and noise that "
                f"is correlated between steps is charged for records that do not come back sooner",
                cure="Give the same batches in the same order in every pass (shuffle=False), or draw them by "
                "CyclicPoissonSampling",
            )
        self._last_steps[chosen] = step

    def _by_user(self, indices: tuple[int, ...]) -> tuple[tuple[int, ...], list[int] | None]:
        """Return a draw with the records of each user together, and whose they are; refuse parts of users."""
        if self._owners is None:
            return indices, None
        drawn = np.fromiter(indices, np.int64, len(indices))
        if not self._owners.holds_whole_users(drawn):
            raise UnsupportedSamplerError(
                "the sampler drew some of a user's records and not all of them: that user would take part more often "
                "than is charged",
                cure="Draw users, and hand out all records of each (ownership.ids.records_of)",
            )
        codes = self._owners.codes[drawn]
        order = np.argsort(codes, kind="stable")
        return tuple(drawn[order].tolist()), codes[order].tolist()

    def _chargeable(self, drawn: Iterable[Any]) -> tuple[int, ...]:
        """Return a draw as whole numbers; refuse one that costs more than a step is charged for, whoever drew it."""
        try:  # equal tensors, say, count as different ones, and would hide that a record comes twice
            indices = tuple(map(operator.index, drawn))
        except TypeError:
            raise UnsupportedSamplerError(
                "the sampler drew something else than a sequence of whole numbers",
                cure="Yield the indices of the records of each logical batch, in a tuple",
            ) from None
        if len(set(indices)) != len(indices):
            raise DuplicateRecordError(
                "the sampler drew one record twice in one logical batch, which would be charged once",
                cure="Draw every record at most once in a step",
            )
        if len(indices) > self._most:
            raise UnsupportedSamplerError(
                "the sampler drew more records than the scheme's largest batch",
                cure="Cut draws at random to largest_batch, or leave largest_batch out",
            )
        if indices and not (min(indices) >= 0 and max(indices) < self._count):
            raise UnsupportedSamplerError(
                f"the sampler drew an index outside [0, {self._count}), the length of the dataset",
                cure="Draw from range(population)",
            )
        return indices

    def _draw_padding(self, step: int, item: int, missing: int) -> list[int]:
        if not missing:
            return []
        indices: list[int] = uniform_indices(self._count, missing, self._padding, Address(step, item)).tolist()
        return indices


def _most_in_a_pass(sampling: SamplingScheme) -> int | None:
    """Return in how many steps of a pass a record may take part, where passes are charged; None where steps are."""
    if sampling.counts_in != "passes":
        return None
    return 1 if sampling.allocation is None else sampling.allocation.participations


def _require_whole_pass(sampling: SamplingScheme, steps: int) -> None:
    """Refuse another number of steps in a pass than the scheme allocates records to: some would have no step."""
    if sampling.allocation is not None and steps != sampling.allocation.bins:
        raise InvalidArgumentError(
            f"the sampling allocates records to {sampling.allocation.bins} steps of a pass, and the loader has {steps} "
            f"batches",
            cure=f"Give the sampling bins={steps}, or the loader so many batches "
            f"(batch_size = ceil(len(dataset) / bins))",
        )


def _require_new(indices: tuple[int, ...], seen: NDArray[Any], most: int) -> None:
    """Refuse a record that came in this pass as often as it may, and count these."""
    chosen = np.fromiter(indices, np.int64, len(indices))
    if (seen[chosen] >= most).any():
        often = "twice" if most == 1 else f"more than {most} times"
        raise DuplicateRecordError(
            f"the sampler drew one record {often} in one pass over the data, which would be charged "
            f"{'once' if most == 1 else f'{most} times'}",
            cure=f"Draw every record at most {'once' if most == 1 else f'{most} times'} in a pass, or count in steps "
            f'(counts_in = "steps")',
        )
    seen[chosen] += 1


def _cutting(
    sampling: SamplingScheme, max_physical_batch_size: int | None, constant_shapes: bool, share: Share
) -> Cutting:
    """Return how one process's share of the logical batches is cut, from checked arguments."""
    rows = max_physical_batch_size
    if rows is not None:
        rows = whole_number("max_physical_batch_size", rows, minimum=1)
    if not isinstance(constant_shapes, bool):
        raise InvalidArgumentError(
            f"must be True or False, got {type(constant_shapes).__name__}",
            where="constant_shapes",
            cure="Pass True or False",
        )
    if not constant_shapes:
        return Cutting(rows)
    most = sampling.largest_batch
    if most is not None:
        most = -(-whole_number("largest_batch", most, minimum=1) // share.of)
        rows = rows or most
        return Cutting(rows, True, -(-most // rows))
    if rows is None:
        raise InvalidArgumentError(
            "constant_shapes needs to know the rows of every item",
            cure="Pass max_physical_batch_size; or truncate draws to a max_batch_size, so that a logical batch is one "
            "item",
        )
    return Cutting(rows, True)


def require_whole_users(sampling: SamplingScheme, max_rows: int | None, share: Share) -> Ownership | None:
    """Return whose each record is, where whole users are drawn; refuse items and processes that would part them."""
    ownership = sampling.ownership
    if ownership is None:
        return None
    if share.of > 1:
        raise InvalidArgumentError(
            "whole users are drawn in one process: several would part them",
            where="sampling",
            cure="Train in one process, or draw records by themselves and ask for the epsilon of group_size",
        )
    if max_rows is not None and max_rows < ownership.most:
        raise InvalidArgumentError(
            f"a user may have {ownership.most} records, which are in one item, and got {max_rows}",
            where="max_physical_batch_size",
            cure=f"Pass {ownership.most} or more, or declare a smaller examples_per_user and keep to it by "
            f"bounded_contributions",
        )
    return ownership


def require_expected_size(sampling: SamplingScheme, batch_size: float, population: int) -> None:
    """Refuse batches of another size than the scheme expects: the sum would be divided by another number."""
    expected = sampling.expected_batch_size(population)
    if expected is not None and not math.isclose(
        positive_number("expected_batch_size", expected), batch_size, rel_tol=1e-9
    ):
        raise InvalidArgumentError(
            f"the expected batch size is {batch_size:g}, and the mechanism's sampling takes {expected:g} of "
            f"{sampling.units_in(population)} {noun_of(sampling.unit)}s ({sampling.describe()})",
            cure=f"Give the mechanism expected_batch_size={expected:g} and load batches of that size, or change the "
            f"sampling",
        )


def _torch_loader(dataset: Any, planner: _Planner, options: LoadingOptions) -> DataLoader[Any]:
    # in_order stays True: the planner's notes are matched with the items by their order.
    return DataLoader(
        dataset,
        batch_sampler=planner,
        collate_fn=CountingCollate(options.collate_fn),
        num_workers=options.num_workers,
        pin_memory=options.pin_memory,
        pin_memory_device=options.pin_memory_device,
        timeout=options.timeout,
        worker_init_fn=options.worker_init_fn,
        multiprocessing_context=options.multiprocessing_context,
        generator=options.generator,
        prefetch_factor=options.prefetch_factor,
        persistent_workers=options.persistent_workers,
    )
